"""JAX in the tests: eight CPU devices, so that meshes are real, and compiled functions kept between runs.

Modules that compare with PyTorch are skipped where it is not installed; the extra ``test`` has it.
"""

import gc
import importlib.metadata
import os
import pathlib
import re
import sys
import tempfile

import hypothesis
import jaxtyping
import pytest

# Set before the first import of jax, which reads them; the environment's own values take precedence.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.check=0")  # its default; so no command line starts itself again
cache = pathlib.Path(tempfile.gettempdir()) / f"pdgen-tests-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Machine code that runs once need not be fast. Without LLVM's optimisations and the newer emitters of fusions, which
# later versions of XLA cannot turn off, programs compile in a third of the time.
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    quick = ["--xla_backend_optimization_level=0"]
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        quick.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *quick]).strip()

# Every call into pdgen checks the types, shapes and dtypes of its annotations. Processes that tests start do not: the
# hook would cost each of them more than a second. PDGEN_CHECK_SHAPES=0 turns the hook off, to measure times.
if os.environ.get("PDGEN_CHECK_SHAPES") != "0":
    # An int is a float, as for type checkers.
    jaxtyping.install_import_hook("pdgen", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# The first example of a test may compile, and a busy machine is slow.
hypothesis.settings.register_profile("pdgen", deadline=None)
hypothesis.settings.load_profile("pdgen")

MAPS = pathlib.Path("/proc/self/maps")
MISSING = re.compile(r"ModuleNotFoundError: No module named '(torch|transformers|diffusers)'")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.failed and (missing := MISSING.search(str(report.longrepr))):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: {missing[1]} is not installed")
    return report


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Free compiled programs before a process has too many: each has some memory maps, and Linux allows 65,530."""
    yield
    if "pdgen.sample.compiled" in sys.modules and MAPS.exists() and MAPS.read_bytes().count(b"\n") > 40_000:
        compiler = sys.modules["pdgen.sample.compiled"].Compiler
        for one in gc.get_objects():
            if type(one) is compiler:
                one._compiled.clear()
        sys.modules["jax"].clear_caches()
