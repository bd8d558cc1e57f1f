"""Shapes world's exact teachers, which read prompts and pictures without a model."""
