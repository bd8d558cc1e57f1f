"""The sampler's command line: every fault ends in one line and status 2."""

import re

import pytest

from pdgen.checkpoints.conversion import to_pdgen
from tests.checkpoints.folders import GOLDEN
from tests.launch.test_sample import QUICK, ROOT, run_all, start
from tests.support.own_lines import own_lines

FAULTS = {
    "--prompt=a --mesh=1,three,1": "--mesh=1,three,1: give three numbers, such as 1,1,4",
    "--prompt=a --mesh=1,5,1": "mesh (1, 5, 1) (data, fsdp, tensor) needs 5 devices, there are",
    "--prompt= ": "a prompt is empty; say what to draw",
    "--prompt=" + "a b " * 99: "has 199 tokens, at most 40 are allowed; shorten it or raise max_prompt_tokens",
    "--noanimate": "nothing to draw; give --prompt or --prompts",
    "--prompts=nowhere.txt": "nowhere.txt: cannot be read as text",
    "--prompt=a --checkpoint=nowhere": "nowhere: no such folder",
    "--prompt=a --height=30 --width=32": "height=30: must be a multiple of 4 between 4 and 32 pixels",
    "--prompt=a --height=16": "give both or none",
    "--prompt=a --text_scale=0.5": "text_scale and image_scale must be at least 1",
    "--prompt=a --max_images=90000000": "would fit, or lower",
    "--prompt=a --mode=paint": "--mode=paint: value should be one of <process|single_pass|edit|",
    "--prompt=a --mode=edit": "mode edit needs an image to edit",
    "--prompt=a --image=README.md": "README.md: not a readable PNG, JPEG, WebP, BMP or GIF",
    "--prompt=a --strategy=luck": "--strategy=luck: value should be one of <process|single_pass|",
    "--prompt=a --strategy=best_of_n --option=n=0": "n=0: must be at least 1",
    "--prompt=a --strategy=best_of_n --option=m=2": "--option=m=2: write KEY=VALUE, KEY one of n",
    "--prompt=a --strategy=process --advisers=README.md": "--advisers: README.md: JSON is malformed",
    "--prompt=a --refine=scale=2": "--refine=scale=2: write KEY=VALUE, KEY one of num_timesteps, ",
    "--prompt=a --refine=text_scale=0": "text_scale and image_scale must be at least 1",
    "--prompt=a --refine=renorm_min=low": "--refine=renorm_min=low: Expected `float`, got `str`",
    "--prompt=a --interval=0.4": "--interval=0.4: Expected `array` of length 2, got 1",
    "--prompt=a --interval=low,1": "--interval=low,1: Expected `float`, got `str` - at `$[0]`",
    "--prompt=a --strategy=parm --option=judged=half": "--option=judged=half: Expected `float`, got `str` - at `$[0]`",
    "--prompt=a --strategy=parm --option=judged=1": "judged=(1.0,): must ascend within (0, 1)",
    "--prompt=a --step=0": "--step: is only for a --branch",
    "--prompt=a --plan=<ins>a</ins> <des>b</des>": "--plan: is only for a --branch",
    "--prompt=a --critique=It fits.": "--critique: is only for a --branch",
    "--prompt=a --draft=a.png": "--draft: is only for a --branch",
    "--branch=nowhere/000 --step=0": "--output: a --branch uses its run's; leave it out",
    "--prompt=a stray": "stray is no flag",
}


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """The result of every fault, and the folder into which none may write."""
    folder, checkpoint = tmp_path_factory.mktemp("faults"), tmp_path_factory.mktemp("checkpoint") / "nano"
    to_pdgen(GOLDEN, checkpoint, log=lambda line: None)
    fixed = [f"--checkpoint={checkpoint}", f"--output={folder / 'out'}", *QUICK]
    split = [re.split(r" (?=--|stray)", fault) for fault in FAULTS]
    return dict(zip(FAULTS, run_all([fixed + arguments for arguments in split]), strict=True)), folder


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_end_in_one_line(faults, fault):
    results, folder = faults
    status, out, err = results[fault]
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("sample: ") and FAULTS[fault] in err
    assert not list(folder.iterdir())


def test_a_plugin_without_its_driver_makes_no_difference(tmp_path):
    """JAX logs a traceback and continues when a plugin cannot start, as CUDA's without a driver."""
    plugin = tmp_path / "jax_plugins" / "driverless"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text("def initialize():\n    raise RuntimeError('operation cuInit(0) failed')\n")
    path = f"{ROOT}:{tmp_path}"
    process = start("--prompt=a", f"--output={tmp_path / 'out'}", "--checkpoint=nowhere", PYTHONPATH=path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2 and "cuInit(0) failed" in err
    (line,) = own_lines(err, "sample").splitlines()
    assert line.startswith("sample: nowhere: no such folder")
