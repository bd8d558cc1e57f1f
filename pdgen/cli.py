"""What every command line has in common: how it begins, and how it ends on a fault of its input.

A fault is one line on stderr that begins with the program's name, and status 2.
"""

import os
import pathlib
import platform
import sys
from typing import NoReturn

from absl import flags


def parse(argv: list[str]) -> list[str]:
    """The flags, for ``app.run(main, flags_parser=parse)``; wrong ones, or a config that cannot be read, ``fail``."""
    try:
        return flags.FLAGS(argv)
    except AttributeError as fault:  # ml_collections on an override of a key that the config lacks
        (cause,) = fault.args  # a line, or the KeyError of a key that no other resembles
        key = str(getattr(cause, "args", [cause])[0]).replace("'", "")
        fail(f"--config: the config has no key {key}")
    except (flags.Error, OSError, ValueError, TypeError) as fault:
        fail(fault)


def use_huge_pages() -> None:
    """Starts the program once more where glibc would not ask the kernel for huge pages; it must be its first call.

    XLA frees the temporaries of every step on a CPU, and glibc gives them back to the kernel. With pages of 4 KiB the
    next step then waits for 100,000 page faults: 429 noised images a second with huge pages and 347 without, in a run
    of ``configs/shapes_base.py``.
    """
    if platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ:
        environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # read when a program starts
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def fail(fault: object) -> NoReturn:
    """Prints the fault in one line after the program's name and leaves with status 2."""
    print(f"{pathlib.Path(sys.argv[0]).stem}: {' '.join(str(fault).split())}", file=sys.stderr)
    sys.exit(2)
