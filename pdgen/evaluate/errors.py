"""The one error of evaluation's input."""


class EvaluationError(ValueError):
    """A prompt list, folder, image, detector or judge cannot be used; the line names it and the remedy."""
