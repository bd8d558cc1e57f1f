"""Data construction: growth, rewriting, stories, the three subsets and importers."""
