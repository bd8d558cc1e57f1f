"""The parts of a run that only watch it: a failure of one of them must not end or delay the run."""

from collections.abc import Callable

from pdgen.files import Log, shorten_fault


class Watchers:
    """Calls to the parts that watch a run. A part that fails is dropped in one line, and the run continues.

    A dropped part is not called again in this process. A part that recovered would leave a gap, and on a full disk
    every further attempt would fail as well.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._dropped: set[str] = set()

    def call(self, name: str, part: Callable[..., object], *args: object) -> None:
        """Call ``part`` with ``args``, unless the part of this name, such as the path of its file, was dropped."""
        if name in self._dropped:
            return
        try:
            part(*args)
        except Exception as fault:  # whatever a disk, a network or another library raises
            self.drop(name, fault)

    def drop(self, name: str, fault: Exception) -> None:
        """Report the first fault of the part ``name`` and call it no more."""
        if name in self._dropped:  # a call that outlived its limit fails as well
            return
        self._dropped.add(name)
        self._log(
            f"{name}: cannot be written ({shorten_fault(fault)}); the run continues without it, mend this and start "
            "the run again to have it back"
        )
