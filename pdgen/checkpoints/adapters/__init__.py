"""Low-rank adapters in PEFT's format: reading, writing, and merging them into a checkpoint."""
