"""Video in: folders, UCF-101, generated clips; decoding, clip sampling, and the cache of tokens."""
