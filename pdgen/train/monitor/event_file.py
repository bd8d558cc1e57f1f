"""TensorBoard's event files, written in the calling thread.

Import this module only where metrics are written: tensorboardX imports PyTorch if it is installed, which takes seconds.
"""

import pathlib
import time
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # ty: ignore[missing-module-member]  # made at run time
from tensorboardX.proto.summary_pb2 import Summary  # ty: ignore[missing-module-member]


class EventFile:
    """A new event file of a run.

    ``tensorboardX.SummaryWriter`` writes in another thread. On a full disk that one dies, and the training would wait
    for ever when its queue is full.

    Args:
      folder: of the run; made if it is missing.
      start: the step from which the run continues. TensorBoard hides the values of later steps in earlier files.

    Raises:
      OSError: here and in all methods, if the file cannot be written.
    """

    def __init__(self, folder: pathlib.Path, start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Runs that start within one second need different names.
        self._writer = EventsWriter(str(folder / "events"), f".{start}")
        self._append(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step by their tags."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._append(Event(step=step, summary=summary))

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _append(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
        self._writer.flush()
