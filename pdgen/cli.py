"""Common parts of the command lines: parsing flags, choosing a mode, reporting wrong input.

Wrong input gives one line on stderr that begins with the program's name, and exit status 2.
"""

import functools
import os
import pathlib
import platform
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, NoReturn, TypeVar

from absl import app, flags, logging

from pdgen.files import describe_fault
from pdgen.messages import shorten

MAX_LINE = 400
_Value = TypeVar("_Value")
_HELP = ("--help", "-help", "--helpshort", "--helpfull", "-?")


class Mode(NamedTuple):
    """One mode of a command line.

    Attributes:
      run: runs the mode with the positional arguments and returns the exit status (None: 0).
      flags: names of the flags that the mode uses; None: all flags that the command line defines.
      needs: names of the flags that are required.
      arguments: whether the mode takes positional arguments.
    """

    run: Callable[..., int | None]
    flags: tuple[str, ...] | None = None
    needs: tuple[str, ...] = ()
    arguments: bool = False


def run_command(run: Callable[[], int | None]) -> None:
    """Run a command line without modes and exit with the status that ``run`` returns (None: 0)."""
    app.run(functools.partial(_run_mode, Mode(run)), flags_parser=parse)


def run_modes(modes: Mapping[str, Mode], default: str = "") -> None:
    """Run the mode that the first argument names and exit with its status.

    Flags of other modes are removed before parsing. So ``--help`` shows only the mode's own flags, and a flag that the
    mode does not use is an error.

    Args:
      modes: the command line's modes by name.
      default: the mode of a command line that begins with a flag; "": the mode is required.
    """
    name, argv = _choose_mode(sys.argv, modes, default)
    mode = modes.get(name, Mode(lambda: None, ()))  # without a mode only --help is possible
    other = _remove_flags(mode)
    parser = functools.partial(parse, mode=name, other=other)
    app.run(functools.partial(_run_mode, mode), argv=argv, flags_parser=parser)


def _choose_mode(argv: list[str], modes: Mapping[str, Mode], default: str) -> tuple[str, list[str]]:
    """Return the mode's name and the arguments without it; the name is "" if there is none and help is requested."""
    first = argv[1] if len(argv) > 1 else ""
    if first in modes:
        return first, [argv[0], *argv[2:]]
    if first and not first.startswith("-"):
        fail(f"{first} is no mode; choose one of {', '.join(modes)}")
    if not default and first not in _HELP:
        fail(f"name a mode first, one of {', '.join(modes)}")
    return default, argv


def _remove_flags(mode: Mode) -> frozenset[str]:
    """Remove the command line's flags that the mode does not use, and return their names."""
    if mode.flags is None:
        return frozenset()
    own = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
    other = frozenset(own - set(mode.flags))
    for name in other:
        delattr(flags.FLAGS, name)
    return other


def _run_mode(mode: Mode, argv: list[str]) -> NoReturn:
    if argv[1:] and not mode.arguments:
        fail(f"{argv[1]} is no flag; write --flag=value")
    if missing := [name for name in mode.needs if flags.FLAGS[name].value is None]:
        fail(f"--{missing[0]} is missing; see --help")
    logging.set_verbosity(logging.WARNING)  # Orbax logs each of its steps
    try:
        status = mode.run(*argv[1:])
    except (ValueError, OSError) as fault:  # every error class of pdgen and of msgspec is a ValueError
        fail(fault)
    sys.exit(status)


def parse(argv: list[str], mode: str = "", other: Collection[str] = ()) -> list[str]:
    """Parse the flags, for ``app.run(main, flags_parser=parse)``, and return the positional arguments.

    Wrong flags and a config that cannot be read call ``fail``.

    Args:
      argv: the program's name and its arguments.
      mode: name of the mode, for messages.
      other: names of the flags that the mode does not use.
    """
    try:
        return flags.FLAGS(argv)
    except AttributeError as fault:  # ml_collections raises it for an override of an unknown key
        (cause,) = fault.args  # a line that suggests a similar key, or a KeyError if there is none
        key = str(getattr(cause, "args", [cause])[0]).replace("'", "")
        fail(f"--config: the config has no key {key}")
    except flags.UnrecognizedFlagError as fault:
        if fault.flagname.partition(".")[0] in other:
            fail(f"--{fault.flagname}: does nothing in mode {mode}; leave it out")
        fail(fault)
    except (flags.Error, OSError, ValueError, TypeError) as fault:
        fail(fault)


def require(flag: flags.FlagHolder[_Value | None]) -> _Value:
    """Return the value of a flag that must be given, or end in ``fail``."""
    if flag.value is None:
        fail(f"--{flag.name} is missing; see --help")
    return flag.value


def exit_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit with status 143, so that unfinished files are removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def use_huge_pages() -> None:
    """Restart the program with huge pages if glibc does not use them; this must be the program's first call.

    On a CPU, XLA frees the temporaries of every step, and glibc returns them to the kernel. With pages of 4 KiB the
    next step waits for 100,000 page faults: a run of ``configs/shapes_base.py`` trains on 429 noised images a second
    with huge pages and on 347 without.
    """
    if platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ:
        environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # read when a program starts
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def fail(fault: object) -> NoReturn:
    """Print the program's name and the fault in one line of at most ``MAX_LINE`` characters; exit with status 2."""
    text = describe_fault(fault) if isinstance(fault, OSError) else str(fault)
    line = f"{pathlib.Path(sys.argv[0]).stem}: {' '.join(text.split())}"
    print(shorten(line, MAX_LINE), file=sys.stderr)
    sys.exit(2)
