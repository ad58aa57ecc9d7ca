"""Feature networks for Fréchet distances, each with the input treatment it was published with."""
