"""Conversion of a checkpoint of several gigabytes both ways, against copying its files.

python benchmarks/convert.py --gigabytes=3

Makes a BAGEL folder of random bf16 values in a temporary folder, which needs up to five times its size. Then copies it,
converts it, checks the result and converts it back, each in its own process, and prints seconds, speed and the peak
resident memory. Expected: converting takes at most twice as long as copying, and at most 1.5 GB of memory plus twice
the largest array.
"""

import dataclasses
import math
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import ml_dtypes
import numpy as np
from absl import app, flags

from pdgen.checkpoints import safetensors_file
from pdgen.checkpoints.bagel_json import make_json
from pdgen.checkpoints.mapping import array_shapes, expected_tensors
from pdgen.checkpoints.pdgen_checkpoint import TORCH_FILES
from pdgen.config import NANO, LanguageConfig, ModelConfig

GIGABYTES = flags.DEFINE_float("gigabytes", 3.0, "Size of the checkpoint, in 10^9 bytes.", lower_bound=0.3)
FOLDER = flags.DEFINE_string("folder", None, "Where to make the temporary folder; by default the system's.")

BF16 = np.dtype(ml_dtypes.bfloat16)
CONVERT = [sys.executable, str(pathlib.Path(__file__).parents[1] / "launch/convert.py")]


def make_config(gigabytes: float) -> ModelConfig:
    """Return a narrow BAGEL with as many layers as the size requires."""
    one = LanguageConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=1,
        num_heads=16,
        num_kv_heads=4,
        head_dim=128,
    )
    counts = []
    for layers in (1, 2):
        language = dataclasses.replace(one, num_layers=layers)
        shapes = expected_tensors(dataclasses.replace(NANO, language=language))
        counts.append(sum(map(math.prod, shapes.values())))
    layers = 1 + round((gigabytes * 1e9 / BF16.itemsize - counts[0]) / (counts[1] - counts[0]))
    return dataclasses.replace(NANO, language=dataclasses.replace(one, num_layers=max(1, layers)))


def make_folder(folder: pathlib.Path, config: ModelConfig) -> int:
    """Write the BAGEL folder and return its bytes."""
    folder.mkdir()
    for name, text in make_json(config).items():
        (folder / name).write_text(text)
    # below 0x7f80 every pattern of bits is a finite number
    values = np.random.default_rng(0).integers(0, 0x7F80, 2**24, np.uint16).view(BF16)
    for part, name in TORCH_FILES.items():
        tensors = {tensor: (BF16, shape) for tensor, shape in sorted(expected_tensors(config, (part,)).items())}
        file = safetensors_file.create(folder / name, tensors, {"format": "pt"})
        for tensor, (_, shape) in tensors.items():
            count = math.prod(shape)
            for start in range(0, count, values.size):
                safetensors_file.write(file, tensor, start, values[: count - start])
        safetensors_file.finish(file)
    return sum(file.stat().st_size for file in folder.iterdir())


def measure(command: list[str]) -> tuple[float, float]:
    """Run a command and return its seconds and its peak resident memory in 10^9 bytes."""
    subprocess.run(["sync"], check=True)
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        peak = max(peak, int((re.search(r"VmHWM:\s+(\d+) kB", status) or [0, 0])[1]) * 1024)
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(process.stderr.read())
    return seconds, peak / 1e9


def main(argv: list[str]) -> None:
    del argv
    config = make_config(GIGABYTES.value)
    largest = max(map(math.prod, array_shapes(config).values())) * BF16.itemsize / 1e9
    folder = pathlib.Path(tempfile.mkdtemp(dir=FOLDER.value))
    try:
        source, copy, target, back = (folder / name for name in ("source", "copy", "target", "back"))
        gigabytes = make_folder(source, config) / 1e9
        print(f"{gigabytes:.2f} GB, largest array {largest:.2f} GB, memory allowed {1.5 + 2 * largest:.2f} GB")
        steps = {
            "copy": ["cp", "-r", str(source), str(copy)],
            "convert": [*CONVERT, f"--source={source}", f"--target={target}"],
            "check": [*CONVERT, f"--source={target}", "--check"],
            "reverse": [*CONVERT, f"--source={target}", f"--target={back}", "--reverse"],
            "copy again": ["cp", "-r", str(back), str(folder / "copy2")],
        }
        for name, command in steps.items():
            seconds, peak = measure(command)
            speed = gigabytes / seconds
            print(f"{name:10} {seconds:6.1f} s {speed:6.2f} GB/s, peak memory {peak:.2f} GB", flush=True)
        same = all((back / f.name).read_bytes() == f.read_bytes() for f in source.glob("*.json"))
        identical = all(subprocess.run(["cmp", source / f, back / f]).returncode == 0 for f in TORCH_FILES.values())
        print(f"there and back: json files {'same' if same else 'DIFFER'}, tensors {'same' if identical else 'DIFFER'}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    app.run(main)
