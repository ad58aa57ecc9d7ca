"""The autoregressive model over packed rows of block tokens."""
