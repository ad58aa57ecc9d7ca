"""genvid: generative video modelling on adaptive tokens."""

__version__ = "0.1.0"
