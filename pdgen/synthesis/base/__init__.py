"""Samples of the base model's tasks: captions, questions, checks and edits."""
