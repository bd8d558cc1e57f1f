"""Shapes world: scene graphs, their language, the painter and the detector."""
