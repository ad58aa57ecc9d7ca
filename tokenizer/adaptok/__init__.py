"""AdapTok (arXiv 2505.17011): block-causal 1-D adaptive tokenizer, its scorer and their training."""
