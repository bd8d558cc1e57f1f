"""JAX in the tests: eight CPU devices, so that meshes are real, and compiled functions kept between runs."""

import os
import pathlib
import tempfile

# Before the first import of jax, which reads them; what the environment says already stays.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.check=0")  # its default; so no command line starts itself anew
cache = pathlib.Path(tempfile.gettempdir()) / f"pdgen-tests-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
