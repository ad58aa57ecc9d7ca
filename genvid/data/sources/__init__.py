"""Where clips come from: files, published data sets, generators, and several of them together."""
