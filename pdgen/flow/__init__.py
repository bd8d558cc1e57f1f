"""Rectified flow: interpolation, guidance, TaylorSeer and the denoising scan."""
