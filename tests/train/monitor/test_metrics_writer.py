"""Metrics as TensorBoard reads them from event files, and as wandb receives them."""

import json
import struct
import sys
import threading

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto import event_pb2

from pdgen.train.monitor import metrics_writer
from pdgen.train.monitor.metrics_writer import MetricsWriter, check_wandb, format_tag
from pdgen.train.monitor.watchers import Watchers
from pdgen.train.run_config import RunError
from tests.support.disks import limit_file_size

TRAIN = {"loss": 4.25, "ce_plan": 3.5, "mse_0": 0.75, "grad_norm": 2.0, "grad_norm_und": 1.5, "fill_vae": 0.875}
TAGS = {"loss": 4.25, "ce/plan": 3.5, "mse/0": 0.75, "grad_norm": 2.0, "grad_norm/und": 1.5, "fill/vae": 0.875}


def read_events(path):
    """The events of a file: length, its checksum, the event, its checksum."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack_from("<Q", data)
        body = data[12 : 12 + length]
        assert struct.unpack_from("<I", data, 8)[0] == mask_crc(data[:8])
        assert struct.unpack_from("<I", data, 12 + length)[0] == mask_crc(body)
        yield event_pb2.Event.FromString(body)
        data = data[16 + length :]


def mask_crc(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_shown(folder):
    """Return {(tag, step): value} as TensorBoard shows a folder: a session's start hides that step and later ones."""
    values = {}
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda p: int(p.suffix[1:])):
        for event in read_events(path):
            if event.WhichOneof("what") == "session_log":
                assert event.session_log.status == event_pb2.SessionLog.START
                values = {key: value for key, value in values.items() if key[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in values  # no step twice
                values[value.tag, event.step] = value.simple_value
    return values


def test_values_are_read_back_with_their_group_before_a_slash(tmp_path):
    writer = MetricsWriter(tmp_path, 0, Watchers(pytest.fail))
    writer.write({"step": 20, **TRAIN})
    writer.write({"step": 20, "ce_plan": 3.25, "unigram_ce": 5.0}, "held_out")
    writer.close()
    assert read_shown(tmp_path / "tensorboard" / "train") == {(name, 20): value for name, value in TAGS.items()}
    assert read_shown(tmp_path / "tensorboard" / "held_out") == {("ce/plan", 20): 3.25, ("unigram_ce", 20): 5.0}


@pytest.mark.parametrize("name", ["ce", "mse", "step", "tokens_per_second", "learning_rate", "memory_bytes"])
def test_a_name_without_group_stays(name):
    assert format_tag(name) == name


def test_a_resumed_run_shows_no_step_twice(tmp_path):
    first = MetricsWriter(tmp_path, 0, Watchers(pytest.fail))  # killed after step 6, with step 4 saved
    for step in (2, 4, 6):
        first.write({"step": step, "loss": float(step)})
    first.close()
    second = MetricsWriter(tmp_path, 4, Watchers(pytest.fail))
    for step in (6, 8):
        second.write({"step": step, "loss": step + 0.5})
    second.close()
    expected = {("loss", 2): 2.0, ("loss", 4): 4.0, ("loss", 6): 6.5, ("loss", 8): 8.5}
    assert read_shown(tmp_path / "tensorboard" / "train") == expected


def test_on_a_full_disk_tensorboard_is_dropped_in_one_line_and_nothing_waits(tmp_path):
    """The queue of a dead thread would be full after ten values."""
    writer = MetricsWriter(tmp_path, 0, Watchers((lines := []).append))
    before = threading.active_count()
    with limit_file_size(200):
        for step in range(1, 60):
            writer.write({"step": step, **TRAIN})
    writer.write({"step": 60, **TRAIN})  # there is room again, but a log with a gap is worse than one that ends
    writer.close()
    assert lines == [
        f"{tmp_path}/tensorboard: cannot be written (File too large); the run continues without it, mend this and "
        "start the run again to have it back"
    ]
    assert threading.active_count() == before


# Records its calls in calls.jsonl beside it.
WANDB = '''
import json, pathlib, threading

released = threading.Event()

class Error(Exception):
    """As wandb's."""

def record(*call):
    with (pathlib.Path(__file__).parent / "calls.jsonl").open("a") as file:
        file.write(json.dumps(call) + "\\n")

class Run:
    def log(self, data, step):
        if step == 7:
            raise RuntimeError("the service\\nhas ended")
        record("log", data, step)

    def finish(self, exit_code):
        record("finish", exit_code)
        if self.offline:
            released.wait()
            raise RuntimeError("gives up")

def Settings(**given):
    return given

def init(**given):
    if given["project"] == "closed":
        raise Error("no API key")
    record("init", given)
    run = Run()
    run.offline = given["project"] == "offline"
    return run
'''


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Install a fake wandb; return a function that reads its recorded calls."""
    folder = tmp_path / "installed"
    folder.mkdir()
    (folder / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield lambda: [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]
    sys.modules.pop("wandb", None)


def test_wandb_receives_the_same_and_a_resumed_run_continues_there(tmp_path, calls):
    workdir = tmp_path / "red"
    workdir.mkdir()
    writer = MetricsWriter(workdir, 0, Watchers(pytest.fail), "shapes", {"rows": 2})
    writer.write({"step": 20, **TRAIN})
    writer.write({"step": 20, "ce_plan": 3.25}, "held_out")
    writer.close()
    MetricsWriter(workdir, 20, Watchers(pytest.fail), "shapes", {"rows": 2}).close(failed=True)
    (_, first), *logged, (_, second), last = calls()
    assert first == second and first["resume"] == "allow" and len(first["id"]) == 32
    assert (first["project"], first["name"], first["config"]) == ("shapes", "red", {"rows": 2})
    assert logged == [
        ["log", {f"train/{name}": value for name, value in TAGS.items()}, 20],
        ["log", {"held_out/ce/plan": 3.25}, 20],
        ["finish", 0],
    ]
    assert last == ["finish", 1]


def test_wandb_that_fails_later_is_dropped_in_one_line(tmp_path, calls):
    writer = MetricsWriter(tmp_path, 0, Watchers((lines := []).append), "shapes")
    for step in (6, 7, 8):
        writer.write({"step": step, "loss": 1.0})
    writer.close()
    assert [call[0] for call in calls()] == ["init", "log"]
    assert len(lines) == 1 and lines[0].startswith("wandb: cannot be written (the service has ended); the run cont")
    assert read_shown(tmp_path / "tensorboard" / "train") == {("loss", step): 1.0 for step in (6, 7, 8)}


def test_wandb_that_never_finishes_is_given_up(tmp_path, calls, monkeypatch):
    """In one line, even if it fails afterwards, and nothing that could keep the process is left."""
    monkeypatch.setattr(metrics_writer, "FINISH_SECONDS", 0.1)
    before = set(threading.enumerate())
    MetricsWriter(tmp_path, 0, Watchers((lines := []).append), "offline").close()
    (left,) = set(threading.enumerate()) - before
    assert left.daemon
    sys.modules["wandb"].released.set()
    left.join(10)
    assert not left.is_alive()
    assert lines == [
        "wandb: cannot be written (not everything is sent after 0.1 s, `wandb sync` sends the rest later); the run "
        "continues without it, mend this and start the run again to have it back"
    ]
    assert calls()[0][1]["settings"] == {"finish_timeout": 0.1}


def test_a_wandb_error_is_one_line(tmp_path, calls):
    with pytest.raises(RunError, match="wandb 'closed': no API key; log in with `wandb login`"):
        MetricsWriter(tmp_path, 0, Watchers(pytest.fail), "closed")


def test_without_wandb_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    check_wandb("")
    with pytest.raises(RunError, match=r"wandb is 'shapes', but wandb is not installed: pip install 'pdgen\[wandb\]'"):
        check_wandb("shapes")
