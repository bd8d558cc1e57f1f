"""The studio's error: a request that is refused."""


class StudioError(ValueError):
    """A request that cannot be served; one line says what is wrong and the remedy. ``status``: of the answer."""

    def __init__(self, line: str, status: int = 400) -> None:
        super().__init__(line)
        self.status = status
