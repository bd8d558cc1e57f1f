"""Records, latents, packing and the loader."""
