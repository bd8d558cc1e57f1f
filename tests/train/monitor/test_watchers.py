"""A watcher that fails costs the run one line."""

import errno
import os

import pytest

from pdgen.train.monitor.watchers import Watchers


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (ValueError("two\n lines"), "two lines"),
        (KeyError(), "KeyError"),
        (RuntimeError("x" * 1000), f"{98 * 'x'}...{98 * 'x'}"),
    ],
    ids=["disk", "text", "no text", "long"],
)
def test_a_part_is_called_until_it_fails_and_others_continue(fault, reason):
    calls, lines = [], []
    watchers = Watchers(lines.append)

    def fail(step):
        calls.append(step)
        if step == 2:
            raise fault

    for step in (1, 2, 3):
        watchers.call("m.jsonl", fail, step)
        watchers.call("other", calls.append, "other")
    assert calls == [1, "other", 2, "other", "other"]
    assert lines == [
        f"m.jsonl: cannot be written ({reason}); the run continues without it, mend this and start the run again to "
        "have it back"
    ]


def test_a_signal_is_not_a_failure_of_a_watcher():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Watchers(pytest.fail).call("m.jsonl", interrupt)
