"""JAX in the tests: eight CPU devices, so that meshes are real, and compiled functions kept between runs."""

import os
import pathlib
import tempfile

# Before the first import of jax, which reads it; an environment that names a platform keeps it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_num_cpu_devices", 8)
cache = pathlib.Path(tempfile.gettempdir()) / f"pdgen-tests-{os.getuid()}"
jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
