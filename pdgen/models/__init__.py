"""Interval attention, the two experts, the ViT, the autoencoder, and key/value contexts."""
