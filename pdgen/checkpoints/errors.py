"""The error of everything that reads or writes checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message is one line that names the file and the remedy."""
