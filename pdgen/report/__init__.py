"""Primitives of pages: page, strip, plot and animation."""
