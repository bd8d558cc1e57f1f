"""Trajectories, the grammar, tokenizers, segments, and the layout of tokens in a pack."""
