"""What TensorBoard reads back from a run's event files, and what wandb is told."""

import json
import struct
import sys

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto import event_pb2

from pdgen.train.monitor.board import Board, check_wandb, tag
from pdgen.train.run_config import RunError

TRAIN = {"loss": 4.25, "ce_plan": 3.5, "mse_0": 0.75, "grad_norm": 2.0, "grad_norm_und": 1.5, "fill_vae": 0.875}
TAGS = {"loss": 4.25, "ce/plan": 3.5, "mse/0": 0.75, "grad_norm": 2.0, "grad_norm/und": 1.5, "fill/vae": 0.875}


def records(path):
    """The events of a file: length, its checksum, the event, its checksum."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack_from("<Q", data)
        body = data[12 : 12 + length]
        assert struct.unpack_from("<I", data, 8)[0] == masked(data[:8])
        assert struct.unpack_from("<I", data, 12 + length)[0] == masked(body)
        yield event_pb2.Event.FromString(body)
        data = data[16 + length :]


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def shown(folder):
    """{(tag, step): value} as TensorBoard shows a folder: a session's start hides that step and all later ones."""
    values = {}
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda p: int(p.suffix[1:])):
        for event in records(path):
            if event.WhichOneof("what") == "session_log":
                assert event.session_log.status == event_pb2.SessionLog.START
                values = {key: value for key, value in values.items() if key[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in values  # no step twice
                values[value.tag, event.step] = value.simple_value
    return values


def test_values_are_read_back_with_their_group_before_a_slash(tmp_path):
    board = Board(tmp_path, 0)
    board.write({"step": 20, **TRAIN})
    board.write({"step": 20, "ce_plan": 3.25, "unigram_ce": 5.0}, "held_out")
    board.close()
    assert shown(tmp_path / "tensorboard" / "train") == {(name, 20): value for name, value in TAGS.items()}
    assert shown(tmp_path / "tensorboard" / "held_out") == {("ce/plan", 20): 3.25, ("unigram_ce", 20): 5.0}


@pytest.mark.parametrize("name", ["ce", "mse", "step", "tokens_per_second", "learning_rate", "memory_bytes"])
def test_a_name_without_group_stays(name):
    assert tag(name) == name


def test_a_resumed_run_shows_no_step_twice(tmp_path):
    first = Board(tmp_path, 0)  # lost after step 6, of which step 4 was saved
    for step in (2, 4, 6):
        first.write({"step": step, "loss": float(step)})
    first.close()
    second = Board(tmp_path, 4)
    for step in (6, 8):
        second.write({"step": step, "loss": step + 0.5})
    second.close()
    expected = {("loss", 2): 2.0, ("loss", 4): 4.0, ("loss", 6): 6.5, ("loss", 8): 8.5}
    assert shown(tmp_path / "tensorboard" / "train") == expected


# Keeps what it is told in calls.jsonl beside it.
WANDB = '''
import json, pathlib

class Error(Exception):
    """As wandb's."""

def tell(*call):
    with (pathlib.Path(__file__).parent / "calls.jsonl").open("a") as file:
        file.write(json.dumps(call) + "\\n")

class Run:
    def log(self, data, step):
        tell("log", data, step)

    def finish(self, exit_code):
        tell("finish", exit_code)

def init(**given):
    if given["project"] == "closed":
        raise Error("no API key")
    tell("init", given)
    return Run()
'''


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A stand-in for wandb; gives a function that reads what it was told."""
    folder = tmp_path / "installed"
    folder.mkdir()
    (folder / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield lambda: [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]
    sys.modules.pop("wandb", None)


def test_wandb_is_told_the_same_and_goes_on_with_its_run(tmp_path, calls):
    workdir = tmp_path / "red"
    workdir.mkdir()
    board = Board(workdir, 0, "shapes", {"rows": 2})
    board.write({"step": 20, **TRAIN})
    board.write({"step": 20, "ce_plan": 3.25}, "held_out")
    board.close()
    Board(workdir, 20, "shapes", {"rows": 2}).close(failed=True)
    (_, first), *logged, (_, second), last = calls()
    assert first == second and first["resume"] == "allow" and len(first["id"]) == 32
    assert (first["project"], first["name"], first["config"]) == ("shapes", "red", {"rows": 2})
    assert logged == [
        ["log", {f"train/{name}": value for name, value in TAGS.items()}, 20],
        ["log", {"held_out/ce/plan": 3.25}, 20],
        ["finish", 0],
    ]
    assert last == ["finish", 1]


def test_what_wandb_refuses_is_one_line(tmp_path, calls):
    with pytest.raises(RunError, match="wandb 'closed': no API key; log in with `wandb login`"):
        Board(tmp_path, 0, "closed")


def test_without_wandb_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    check_wandb("")
    with pytest.raises(RunError, match=r"wandb is 'shapes', but wandb is not installed: pip install 'pdgen\[wandb\]'"):
        check_wandb("shapes")
