"""BAGEL checkpoints and pdgen checkpoints: one table of names, reading, writing and digests."""
