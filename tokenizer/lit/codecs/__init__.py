"""Frozen continuous tokenizers behind one contract, and a small one to train."""
