"""The error of unusable input to an evaluation."""


class EvaluationError(ValueError):
    """A prompt list, folder, image, detector or judge that cannot be used.

    The message is one line that names it and the remedy.
    """
