"""How every command line ends on a fault of its input: one line on stderr that begins with its name, status 2."""

import pathlib
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


def fail(fault: object) -> NoReturn:
    """Prints the fault in one line after the program's name and leaves with status 2."""
    print(f"{pathlib.Path(sys.argv[0]).stem}: {' '.join(str(fault).split())}", file=sys.stderr)
    sys.exit(2)
