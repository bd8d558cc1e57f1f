"""The studio: a page and an API on which people paint together with the model."""
