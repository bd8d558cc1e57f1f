"""Pairs of trajectories of one prompt, of which the first is preferred: two consecutive records of a data set.

Both begin with the same segments, the prompt at least. These are context. What follows the point where the two part is
a target, unless its own trajectory corrects it later (``trajectory.check_grammar``).
"""

from collections.abc import Sequence

import msgspec

from pdgen.sequence.modes import TrajectoryError, find_corrected
from pdgen.sequence.trajectory import Image, Record, Text, segment_kind

BETTER, WORSE = "/better", "/worse"  # ends of the records' ids


def is_pair(better: str, worse: str) -> bool:
    """Return whether these are the ids of a pair's records."""
    return better.endswith(BETTER) and worse == better.removesuffix(BETTER) + WORSE


def count_common(better: Sequence[Text | Image], worse: Sequence[Text | Image]) -> int:
    """Count the segments with which both trajectories begin: equal texts and equal pictures."""
    equal = [_content(a) == _content(b) for a, b in zip(better, worse)]
    return [*equal, False].index(False)


def _content(segment: Text | Image) -> tuple[str, str | bytes]:
    return segment.stage, segment.text if isinstance(segment, Text) else segment.png


def make_pair(pair_id: str, better: Record, worse: Record) -> tuple[Record, Record]:
    """Make the two records of a pair, with the targets of preference learning; other targets are ignored.

    Raises:
      TrajectoryError: the two differ in mode or prompt, are equal, or one has nothing to learn after they part.
    """
    common = count_common(better.segments, worse.segments)
    stages = [segment.stage for segment in better.segments[:common]]
    if better.mode != worse.mode or "prompt" not in stages:
        raise TrajectoryError(f"pair {pair_id}: the two have different modes, given images or prompts")
    sides = []
    for record, end in ((better, BETTER), (worse, WORSE)):
        corrected = set(find_corrected([segment_kind(segment) for segment in record.segments]))
        segments = [
            msgspec.structs.replace(segment, target=number >= common and number not in corrected)
            for number, segment in enumerate(record.segments)
        ]
        # A trajectory that ends where the two part is judged by its end alone.
        if not any(segment.target for segment in segments) and not (record.complete and record.mode == "process"):
            raise TrajectoryError(f"pair {pair_id}: the {end[1:]} one has nothing to learn after segment {common}")
        sides.append(msgspec.structs.replace(record, id=pair_id + end, segments=segments))
    if common == len(better.segments) == len(worse.segments):
        raise TrajectoryError(f"pair {pair_id}: the two trajectories are equal")
    return sides[0], sides[1]
