"""Compiling ahead of calls: once per shape and setting, and timed separately from running."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.sample.compiled import Compiler, Stopwatch, keep_compiled


def test_each_shape_and_setting_is_compiled_once():
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def scaled(factor, tree):
        traced.append((factor, tree["x"].shape, tree["x"].dtype))
        return tree["x"] * factor

    compiler = Compiler()
    for factor, x in [(2, np.ones(3)), (2, np.zeros(3)), (3, np.ones(3)), (2, np.ones(4)), (2, np.ones(4, np.int32))]:
        x = x.astype(np.float32) if x.dtype == np.float64 else x
        np.testing.assert_array_equal(compiler(scaled, (factor,), {"x": x}), x * factor)
    f, i = jnp.dtype("float32"), jnp.dtype("int32")
    assert traced == [(2, (3,), f), (3, (3,), f), (2, (4,), f), (2, (4,), i)]


def test_a_stopwatch_excludes_compiling():
    compiler = Compiler()
    slow = jax.jit(lambda x: (time.sleep(0.2), x)[1])  # slow to trace, quick to run
    watch = Stopwatch(compiler)
    for _ in range(2):
        compiler(slow, (), jnp.ones(2))
    assert 0.2 <= watch.compiling == compiler.seconds
    assert watch.seconds < 0.2
    assert Stopwatch(compiler).compiling == 0


@pytest.mark.parametrize("set_folder", [None, "somewhere"])
def test_compiled_functions_are_kept_in_the_users_cache(monkeypatch, tmp_path, set_folder):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", set_folder and str(tmp_path / set_folder))
        expected = tmp_path / (set_folder or "pdgen/xla")
        assert keep_compiled() == expected and jax.config.jax_compilation_cache_dir == str(expected)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_quick_code_computes_the_same():
    """LLVM's optimisations may change only the order of a sum."""
    x = jnp.linspace(-1, 1, 640).reshape(20, 32)
    product = jax.jit(lambda power, x: jnp.tanh(x @ x.T) ** power, static_argnums=0)
    slow, quick = (Compiler(quick)(product, (2,), x) for quick in (False, True))
    np.testing.assert_allclose(quick, slow, rtol=1e-5, atol=1e-6)


def test_options_go_to_the_backend_that_has_them(monkeypatch):
    """Quick code on a CPU only, copies ahead on a GPU only."""
    asked = []

    class Lowered:
        def compile(self, options):
            asked.append(options)
            return lambda x: x

    class Function:
        def lower(self, *args):
            return Lowered()

    function = Function()
    for backend in ("cpu", "gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        for quick, copy_ahead in ((True, False), (False, True), (False, False)):
            Compiler(quick, copy_ahead)(function, (), np.zeros(1))
    ahead = {"xla_gpu_experimental_parallel_async_compute_limit": "64"}
    assert asked == [{"xla_backend_optimization_level": "0"}, None, None, None, ahead, None, None, None, None]
