"""Progress bars where standard error cannot be written."""

import contextlib
import sys
import threading

import pytest

from pdgen.progress_bar import ProgressBar


@pytest.fixture
def full_stderr(monkeypatch):
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:  # closing it fails as well
        monkeypatch.setattr(sys, "stderr", full)
        yield


def test_work_continues_without_its_bar(full_stderr):
    assert list(ProgressBar(range(5), miniters=1, mininterval=0)) == [*range(5)]


def test_another_thread_is_not_blocked(full_stderr):
    """The bars of all threads share a lock, which a failing bar must release."""
    with ProgressBar(total=1) as bar:
        bar.refresh()
    thread = threading.Thread(target=lambda: ProgressBar(total=1).close(), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_a_bar_that_fails_when_it_ends(monkeypatch):
    bar = ProgressBar(total=1)
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:
        bar.fp = full
        bar.close()
