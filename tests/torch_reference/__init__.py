"""BAGEL in PyTorch, written from its formulas on transformers' Qwen2 and SigLIP modules.

The live reference of the tests and benchmarks: state-dict names are those of the public checkpoint, so that
``load_state_dict`` of a checkpoint is strict. It obeys the golden numbers (``tests/golden``).

Axis legend of the package:
  S packed sequence, Q new tokens, U understanding tokens, G generation (VAE) tokens, V ViT tokens
  D hidden of the language model, C hidden of the ViT, H heads, K key/value heads, h head dim
"""
