"""Progress bars on standard error that cannot end the work which they show."""

import contextlib
from typing import Any

from tqdm import tqdm


class ProgressBar(tqdm):
    """A progress bar with tqdm's arguments. If standard error cannot be written, it disappears and the work continues.

    tqdm itself raises and keeps the lock that all bars of the process share: any other thread that shows progress,
    such as those which write a checkpoint, then waits for ever.
    """

    def display(self, *args: Any, **kwargs: Any) -> bool | None:
        """Show the bar, or end it if that fails."""
        try:
            return super().display(*args, **kwargs)
        except OSError:
            self.disable = True
            return None

    def close(self) -> None:
        """Leave or remove the bar."""
        with contextlib.suppress(OSError):
            super().close()
