"""Full disks and unwritable folders, for root too."""

import contextlib
import ctypes
import os
import resource

_DAC_OVERRIDE, _VERSION_3 = 1, 0x20080522  # of linux/capability.h


@contextlib.contextmanager
def limit_file_size(nbytes):
    """Let no file grow beyond ``nbytes`` in the block: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def forbid_writing(folder):
    """Forbid writing into ``folder`` in the block, in this thread and in programs started with ``as_user``."""
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    try:
        with _without_override():
            yield
    finally:
        folder.chmod(mode)


def as_user(command):
    """Return a command that obeys permissions, which root does not by default."""
    return ["setpriv", "--bounding-set=-dac_override", *command] if os.geteuid() == 0 else command


@contextlib.contextmanager
def _without_override():
    """Make this thread obey file permissions even as root."""
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    data[0] &= ~(1 << _DAC_OVERRIDE)
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0] |= 1 << _DAC_OVERRIDE
        assert libc.capset(header, data) == 0
