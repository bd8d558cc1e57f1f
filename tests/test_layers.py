"""The layers: a module of pdgen imports only from its own package and from packages further down."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LAYERS = (  # from the bottom
    "json_text",
    "messages",
    "config",
    "files",
    "progress_bar",
    "sharding",
    "cli",
    "assets",
    "sequence",
    "models",
    "flow",
    "checkpoints",
    "report",
    "data",
    "shapes",
    "teachers",
    "synthesis",
    "sample",
    "train",
    "evaluate",
    "studio",
)


def imported_layers(source):
    """Return the layers that a module imports from, in functions too. A relative import is the unknown layer "."."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" if not node.level else "pdgen.." for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] or "." for name in names if name.startswith("pdgen."))


def upward_imports(path, source):
    """Return the layers from which the module at ``path``, relative to the repository, must not import but does."""
    own = path.removesuffix(".py").split("/")[1]
    # The primitives of pages serve every layer above, so they may import sequences alone.
    below = LAYERS[: LAYERS.index("sequence") + 1] if own == "report" else LAYERS[: LAYERS.index(own)]
    allowed = {*below, own}
    return [layer for layer in imported_layers(source) if layer not in allowed]


def test_every_import_points_downwards():
    paths = [path.relative_to(ROOT).as_posix() for path in (ROOT / "pdgen").rglob("*.py")]
    modules = sorted(path for path in paths if path != "pdgen/__init__.py")
    assert {path.removesuffix(".py").split("/")[1] for path in modules} == {*LAYERS}
    assert {p: up for p in modules if (up := upward_imports(p, (ROOT / p).read_text()))} == {}


@pytest.mark.parametrize(
    ("path", "source", "layers"),
    [
        ("pdgen/shapes/painter.py", "from pdgen.teachers.protocols import Stroke", ["teachers"]),
        ("pdgen/files.py", "def f():\n    import pdgen.sharding", ["sharding"]),
        ("pdgen/models/mot.py", "from pdgen import config, flow", ["flow"]),
        ("pdgen/report/page.py", "from pdgen.models import mot\nfrom pdgen.report import strip", ["models"]),
        ("pdgen/data/loader.py", "from ..train import loop", ["."]),
    ],
)
def test_an_upward_import_is_found(path, source, layers):
    assert upward_imports(path, source) == layers
