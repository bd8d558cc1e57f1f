"""``sample.py --dry_run``: the needs of a run, from a checkpoint without its weights."""

import re
import shutil

from pdgen.checkpoints.conversion import to_pdgen
from tests.checkpoints.folders import GOLDEN
from tests.launch.test_sample import run_all


def test_it_prints_what_a_run_needs_and_writes_nothing(tmp_path):
    to_pdgen(GOLDEN, tmp_path / "int8", int8=True, log=lambda line: None)
    shutil.rmtree(tmp_path / "int8" / "params")
    common = ["--dry_run", f"--checkpoint={tmp_path / 'int8'}", "--prompt=a red circle"]
    done, offloaded, *refused = run_all(
        [
            [*common, "--samples=3", "--batch=2", "--max_images=2", f"--output={tmp_path / 'out'}"],
            [*common, "--offload=gen"],
            [*common, "--strategy=best_of_n"],
            [*common, "--max_images=-1"],
            [*common, "--offload=both"],
        ]
    )
    assert done[0] in (None, 0) and done[2] == ""
    text = done[1]
    assert re.search(r"^\S+/int8, int8, computed in float32", text)
    assert "weights        0.003 GB\n" in text  # 3,144,492 bytes
    assert "at most 2 images of 49 steps and " in text and "(2 x a batch)" in text
    assert offloaded[0] in (None, 0) and "GB in host memory: " in offloaded[1]
    copied = [" copies 0.000 GB from host memory" in line for line in offloaded[1].splitlines()[4:6]]
    assert copied == [False, True]  # a text token, an image step
    remedies = ("leave --strategy out", "max_images=-1: must be at least 0", "value should be one of <und|gen>")
    for (status, out, err), words in zip(refused, remedies, strict=True):
        assert (status, out) == (2, "") and words in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]
