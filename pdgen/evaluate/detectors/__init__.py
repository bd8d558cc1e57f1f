"""Detectors for GenEval's rule: the exact one of shapes world, and Mask2Former."""
