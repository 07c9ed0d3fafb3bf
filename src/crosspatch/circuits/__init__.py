"""Circuits: the graph of a model's parts, which of its edges a behaviour needs, and how well they do alone."""
