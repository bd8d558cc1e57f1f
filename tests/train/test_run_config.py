"""The config of a run: typed keys, strict reading, and the settings of steps."""

import dataclasses
import json
import subprocess
import sys

import ml_collections
import pytest

from pdgen.train.lora import LoraConfig
from pdgen.train.run_config import RunError, read_run_config, run_to_json
from tests.support.small import CONFIG

REQUIRED = {"data": "d", "num_steps": 7, "rows": 4, "budgets": {"text": 1, "vit": 1, "vae": 1}}
FACTORS = (("vision/.*", 0), ("(?!vision/).*", 0.5))


def test_the_keys_of_a_step_reach_it():
    """Read from the types of a config file and from the saved JSON."""
    values = ml_collections.ConfigDict(REQUIRED)
    values.accumulate, values.ce_weight, values.balance_texts, values.draws = 2, 0.25, True, 3
    values.optimizer = ml_collections.ConfigDict({"factors": FACTORS, "ema_decay": 0.9, "nu_dtype": "bfloat16"})
    values.lora = ml_collections.ConfigDict({"rank": 4, "alpha": 8.0, "kernels": ".*"})
    values.compute = ml_collections.ConfigDict({"dtype": "bfloat16", "param_dtype": "bfloat16"})
    run = read_run_config(values.to_dict())
    step = run.step_config(CONFIG)
    assert (step.model, step.compute, step.num_steps) == (CONFIG, run.compute, 7)
    assert (step.ce_weight, step.accumulate, step.lora) == (0.25, 2, LoraConfig(4, 8.0, ".*"))
    assert step.optimizer.factors == FACTORS and step.optimizer.nu_dtype == "bfloat16"
    assert step.lora.scale == 2 and run.loader_config.balance_texts and run.loader_config.draws == 3
    assert read_run_config(json.loads(run_to_json(run))) == run


def test_a_key_that_the_file_leaves_out_is_a_flag(tmp_path):
    """At any depth; values of the file stay, and unknown keys are refused."""
    (tmp_path / "config.py").write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({REQUIRED!r} | "
        "{'optimizer': {'b2': 0.5}})\n"
    )
    code = """
import sys
from pdgen.cli import parse
from pdgen.train.run_config import define_run_config, read_run_config, run_to_json
config = define_run_config("Some file.")
parse(sys.argv)
print(run_to_json(read_run_config(config.value.to_dict())))
"""

    def read(*flags):
        command = [sys.executable, "-c", code, f"--config={tmp_path / 'config.py'}", *flags]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    changed = read("--config.optimizer.ema_decay=0.9", "--config.lora.rank=3", "--config.mixture={'a': 2.0}")
    run = read_run_config(json.loads(changed.stdout))
    assert (run.optimizer.b2, run.optimizer.ema_decay, run.lora.rank, run.mixture) == (0.5, 0.9, 3, {"a": 2.0})
    unchanged = read_run_config(REQUIRED | {"optimizer": {"b2": 0.5}})
    assert run == dataclasses.replace(
        unchanged,
        mixture={"a": 2.0},
        lora=LoraConfig(rank=3),
        optimizer=dataclasses.replace(unchanged.optimizer, ema_decay=0.9),
    )
    refused = read("--config.lora.ranks=3")
    assert (refused.returncode, refused.stdout) == (2, "") and "the config has no key ranks" in refused.stderr


@pytest.mark.parametrize(
    "change, message",
    [
        ({"accumulate": 0}, "accumulate is 0, expected at least 1"),
        ({"optimizer": {"mu_dtype": "float16"}}, "float16.*optimizer.mu_dtype"),
        ({"optimizer": {"factors": {".*": 1.0}}}, "optimizer.factors"),
        ({"optimizer": {"factors": [["x", "half"]]}}, "optimizer.factors"),
        ({"optimizer": {"ema": 0.9}}, "no such key: optimizer.ema"),
        ({"spike_factor": 0.5}, "spike_factor is 0.5, expected more than 1, or 0"),
        ({"draws": 0}, "draws is 0, expected at least 1"),
        ({"held_out": -1}, "held_out is -1, expected at least 0"),
        ({"held_out_every": 0}, "held_out_every is 0, expected at least 1"),
        ({"lora": {"rank": -2}}, "lora: rank -2"),
        ({"lora": {"rank": "4"}}, "lora.rank"),
        ({"balance_texts": 1}, "balance_texts"),
        ({"compute": {"param_dtype": "bfloat16"}}, "param_dtype is bfloat16, in which small updates are rounded away"),
    ],
)
def test_faults_name_the_key(change, message):
    with pytest.raises(RunError, match=message):
        read_run_config(REQUIRED | change)
