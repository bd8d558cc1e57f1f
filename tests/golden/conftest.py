"""The golden numbers: folders that hold a small BAGEL checkpoint and what it must compute.

``PDGEN_GOLDEN`` names a folder of such folders (default: this one); every sub-folder with an
``expected.json`` is a case, and every test that takes the fixture ``golden`` runs once per case:

    def test_autoencoder_moments(golden):
        params = load(golden.autoencoder_weights)
        golden.check("vae.moments", encode(params, golden.numbers["vae.image"]))

The sizes differ from folder to folder (and a tokenizer may be absent), so a test takes every size from
``golden.config`` or from the arrays, and every setting from ``golden.expected``.
"""

import dataclasses
import functools
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from pdgen.config import ModelConfig, read_config

VALUE_TOLERANCE = 1e-5  # of the largest expected magnitude, or of 1 where that is larger
GRADIENT_TOLERANCE = 1e-4  # of the largest expected magnitude
GRADIENT_FLOOR = 1e-7  # absolute: a gradient that is zero but for rounding


def check(name: str, actual: Any, expected: Any) -> None:
    """Assert that ``actual`` is the golden array ``expected``, at the tolerance that ``name`` asks for.

    Integers and booleans must be equal. A gradient (``name`` contains "grad.", or starts with "grad" or
    "grad_norm.") must obey max|a-b| <= 1e-4 max|b| + 1e-7, any other array max|a-b| <= 1e-5 max(1, max|b|).

    Args:
      name: what is compared; appears in the message.
      actual: anything numpy converts (a JAX array, a detached torch tensor).
      expected: the same shape. A golden scalar has shape [1] and is compared with [] as well.

    Raises:
      AssertionError: shapes or values differ, or ``actual`` is not finite.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    if expected.shape == (1,) and actual.shape == ():
        actual = actual.reshape(1)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, expected {expected.shape}"
    if expected.dtype.kind in "iub":
        wrong = np.flatnonzero((actual != expected).ravel())
        assert not wrong.size, f"{name}: {wrong.size} of {expected.size} integers differ, first at {wrong[0]}"
        return
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    assert np.isfinite(actual).all(), f"{name}: {np.count_nonzero(~np.isfinite(actual))} values not finite"
    largest = np.abs(expected).max(initial=0.0)
    bound = VALUE_TOLERANCE * max(1.0, largest)
    if any(part.startswith("grad") for part in name.split(".")):
        bound = GRADIENT_TOLERANCE * largest + GRADIENT_FLOOR
    error = np.abs(actual - expected).max(initial=0.0)
    assert error <= bound, f"{name}: max|a-b| = {error:.2e}, allowed {bound:.2e} (max|b| = {largest:.2e})"


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """A golden folder. Files are read on first use and cached; treat every array as read-only."""

    folder: pathlib.Path

    @functools.cached_property
    def config(self) -> ModelConfig:
        """The sizes, as the product reads them."""
        return read_config(self.folder)

    @functools.cached_property
    def json(self) -> dict[str, dict[str, Any]]:
        """The raw config files: keys "config", "llm_config", "vit_config"."""
        names = ("config", "llm_config", "vit_config")
        return {name: json.loads((self.folder / f"{name}.json").read_text()) for name in names}

    @functools.cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """ema.safetensors: every tensor by its PyTorch name."""
        return load_file(self.folder / "ema.safetensors")

    @functools.cached_property
    def autoencoder_weights(self) -> dict[str, np.ndarray]:
        """ae.safetensors: every tensor by its PyTorch name."""
        return load_file(self.folder / "ae.safetensors")

    @functools.cached_property
    def expected(self) -> dict[str, Any]:
        """expected.json: token ids, sample plans, contexts, sampling settings, tables."""
        return json.loads((self.folder / "expected.json").read_text())

    @functools.cached_property
    def numbers(self) -> dict[str, np.ndarray]:
        """expected.safetensors: given and computed arrays by name."""
        return load_file(self.folder / "expected.safetensors")

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder holds a tokenizer (expected.json then holds its cases)."""
        return (self.folder / "tokenizer.json").exists()

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """The numbers whose names start with ``prefix``, by the rest of their names."""
        return {name[len(prefix) :]: v for name, v in self.numbers.items() if name.startswith(prefix)}

    def check(self, name: str, actual: Any) -> None:
        """``check`` against the golden number ``name``."""
        check(name, actual, self.numbers[name])

    def check_all(self, prefix: str, actual: dict[str, Any]) -> None:
        """Check every number under ``prefix`` against ``actual`` (same names, prefix removed).

        Raises:
          AssertionError: one message for all faults; a number that ``actual`` lacks is a fault.
        """
        faults = []
        group = self.group(prefix)
        assert group, f"{self.folder}: no number starts with {prefix!r}"
        for name, expected in group.items():
            try:
                assert name in actual, f"{prefix}{name}: not computed"
                check(prefix + name, actual[name], expected)
            except AssertionError as fault:
                faults.append(str(fault).splitlines()[0])
        assert not faults, "\n".join([f"{len(faults)} of {len(group)} numbers are wrong:", *faults])


def _folders() -> list[pathlib.Path]:
    root = pathlib.Path(os.environ.get("PDGEN_GOLDEN") or pathlib.Path(__file__).parent)
    folders = sorted(path.parent for path in root.glob("*/expected.json"))
    if not folders:
        raise pytest.UsageError(f"PDGEN_GOLDEN={root}: no sub-folder holds an expected.json")
    return folders


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that uses ``golden`` (directly or through another fixture) once per folder."""
    if "golden" in metafunc.fixturenames:
        folders = _folders()
        metafunc.parametrize("golden", folders, ids=[f.name for f in folders], indirect=True, scope="session")


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> GoldenCase:
    """A golden folder; pytest orders the tests so that each is loaded once."""
    return GoldenCase(request.param)


@pytest.fixture(scope="package", autouse=True)
def full_matmul_precision():
    """The tolerances hold for float32 products, which accelerators round to fewer bits by default."""
    with jax.default_matmul_precision("highest"):
        yield
