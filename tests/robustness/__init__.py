"""Readers on damaged inputs: each ends in success or in one line, and leaves nothing behind."""
