"""The error of everything that reads or writes checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message, one line, names file and remedy."""
