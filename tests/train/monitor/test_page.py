"""The page of a run from logs written by hand: its numbers, missing files, and several runs side by side."""

import html.parser
import json
import re

import numpy as np
import PIL.Image
import pytest

from pdgen.sequence.trajectory import ImageStage, TextStage, Trajectory, format_plan
from pdgen.sequence.trajectory_folder import save_trajectory
from pdgen.train.monitor.curves import Line, draw_chart, format_number, smooth, thin
from pdgen.train.monitor.page import flatten_config, format_duration, render_run_page
from pdgen.train.monitor.run_log import MetricsLog, pictures_folder, read_metrics_log, read_run_log
from pdgen.train.run_config import RunError

CONFIG = {
    "data": "out/shapes",
    "num_steps": 400,
    "rows": 2,
    "budgets": {"text": 300, "vit": 100, "vae": 600},
    "init": "",
    "model": "nano",
    "log_every": 20,
    "mesh": [1, -1, 1],
    "mixture": {},
    "optimizer": {"learning_rate": 0.0015, "schedule": "cosine"},
}
# A half-life of one point: 2; (2 / 2 + 5) / 1.5 = 4; (2 / 4 + 5 / 2 + 8) / 1.75 = 6.2857.
METRICS = [
    {"step": 20, "loss": 2.0, "ce": 4.0, "ce_plan": 1.0, "mse_3": 0.5, "step_seconds": 0.5, "tokens_per_second": 900.0},
    {
        "step": 40,
        "loss": 5.0,
        "ce": 2.0,
        "ce_plan": 2.0,
        "grad_norm_und": 9.0,
        "step_seconds": 0.25,
        "tokens_per_second": 1000.0,
        "mfu": 0.41,
        "memory_bytes": 3 * 2**29,
    },
    {"step": 60, "loss": 8.0, "ce": 1.0, "step_seconds": 0.25, "tokens_per_second": 5000.0, "mfu": 0.43},
]
HELD_OUT = [
    {"step": 20, "ce": 3.5, "mse": 1.5, "ce_plan": 3.25, "unigram_ce": 3.75, "constant_mse": 1.25},
    {"step": 60, "ce": 0.875, "mse": 0.625, "ce_plan": 0.75, "unigram_ce": 3.75, "constant_mse": 1.25},
]
PICTURE = (255, 0, 0)


def write_run(folder, metrics=METRICS, held_out=HELD_OUT, **config):
    (folder / "checkpoints" / "40").mkdir(parents=True)
    (folder / "checkpoints" / "60.damaged").mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    for name, rows in (("metrics", metrics), ("held_out", held_out)):
        if rows is not None:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def draw(workdir, step, prompt, shade, text="Add a <b>circle</b>."):
    stages = [
        TextStage("plan", format_plan(text, "A circle.")),
        ImageStage("sketch", "01_sketch.png", 4, 4),
    ]
    image = PIL.Image.new("RGB", (4, 4), (shade, 0, 0))
    trajectory = Trajectory(
        prompt=f"prompt {prompt}", stages=stages, stop_reason="step limit", seed=prompt, checkpoint="", images=[image]
    )
    save_trajectory(pictures_folder(workdir, step) / f"{prompt:03d}", trajectory)


@pytest.fixture
def workdir(tmp_path):
    return write_run(tmp_path / "red")


class Page(html.parser.HTMLParser):
    """A parser of a page: facts by label, charts with their legends, pictures, links and their targets."""

    def __init__(self, text):
        super().__init__()
        self.text, self.facts, self.charts, self.images, self.links, self.ids = text, {}, {}, [], [], set()
        self._inside, self._label = [], ""
        self.feed(text)
        self.close()
        assert not self._inside

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.images.append(attributes)
        if tag == "a":
            self.links.append(attributes["href"])
        if tag == "svg":
            self.charts[self._label]["lines"] = 0
        if "id" in attributes and not any(inside == "svg" for inside in self._inside):
            self.ids.add(attributes["id"])
        if tag not in ("meta", "img"):
            self._inside.append(tag)

    def handle_startendtag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "path" and "clip-path" in attributes and "stroke: #" in attributes["style"]:
            self.charts[self._label]["lines"] += 1

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag

    def handle_data(self, data):
        words, inside = " ".join(data.split()), self._inside[-1] if self._inside else ""
        if not words:
            return
        if inside in ("th", "figcaption"):
            self._label = words
        if inside == "figcaption":
            self.charts[words] = {"legend": []}
        if inside == "td":
            self.facts.setdefault(self._label, []).append(words)
        if inside == "li":
            self.charts[self._label]["legend"].append(words)


def test_the_facts_state_progress_and_speed(workdir):
    facts = Page(render_run_page([read_run_log(workdir)])).facts
    assert facts["steps"] == ["60 of 400 (15%)"]
    assert facts["training time"] == ["20 s"]  # 20 * 0.5 + 20 * 0.25 + 20 * 0.25
    assert facts["tokens/s"] == ["1,000"] and facts["MFU"] == ["42%"]  # medians
    assert facts["checkpoints"] == ["40"]
    assert facts["held-out cross-entropy"] == ["0.875 (unigram model 3.75)"]
    assert facts["held-out MSE"] == ["0.625 (best constant 1.25)"]
    assert facts["batch"] == ["2 packs of 1,000 slots"]
    assert re.fullmatch(r"last logged \d{4}-\d\d-\d\d \d\d:\d\d UTC", facts["state"][0])


def test_legends_show_the_last_values(workdir):
    charts = Page(render_run_page([read_run_log(workdir)])).charts
    legends = {title: chart["legend"] for title, chart in charts.items()}
    assert legends["Loss"] == ["loss: 6.29"]
    # (4 / 4 + 2 / 2 + 1) / 1.75
    assert legends["Cross-entropy"] == ["texts and switches: 1.71, held-out 0.875", "unigram model: 3.75"]
    assert legends["Cross-entropy by stage"] == ["plan: 1.67, held-out 0.75"]  # (1 / 2 + 2) / 1.5
    assert legends["Flow loss (MSE)"] == ["images: held-out 0.625", "best constant: 1.25"]
    assert legends["Flow loss by timestep (t = 1 is noise)"] == ["from 0.75: 0.5"]
    assert legends["Gradients"] == ["understanding: 9"]
    assert legends["Model FLOPs utilisation"] == ["MFU: 42.3%"]  # (41 / 2 + 43) / 1.5
    assert legends["Device memory"] == ["peak so far: 1.5 GiB"]
    absent = {"Updates", "Parameters", "Learning rate", "Fill of the packs", "Wait for data", "Skipped loss spikes"}
    assert not absent & set(legends)


def test_a_chart_has_its_lines(workdir):
    charts = Page(render_run_page([read_run_log(workdir)])).charts
    assert charts["Loss"]["lines"] == 2  # as logged, and smoothed
    assert charts["Cross-entropy"]["lines"] == 4  # and held-out, and the baselines
    assert charts["Flow loss (MSE)"]["lines"] == 2
    assert charts["Device memory"]["lines"] == 1  # nothing to smooth


def test_several_runs_share_axes_and_each_has_a_colour(workdir, tmp_path):
    other = write_run(tmp_path / "blue", METRICS[:2], None, num_steps=40)
    page = Page(render_run_page([read_run_log(workdir), read_run_log(other)]))
    assert page.facts["steps"] == ["60 of 400 (15%)", "40 of 40 (100%)"]
    assert page.facts["state"][1] == "finished"
    assert page.charts["Loss"] == {"legend": ["red: 6.29", "blue: 4"], "lines": 4}
    assert page.charts["Cross-entropy by stage: plan"]["legend"] == ["red: 1.67, held-out 0.75", "blue: 1.67"]
    assert page.charts["Cross-entropy"]["legend"][-1] == "unigram model: 3.75"
    assert "Cross-entropy by stage: inspect" not in page.charts


def test_the_page_of_a_run_without_metrics(tmp_path):
    page = Page(render_run_page([read_run_log(write_run(tmp_path / "new", None, None))]))
    assert page.facts["state"] == ["nothing logged yet: the first line is written at step 20"]
    assert page.facts["steps"] == ["0 of 400 (0%)"] and not page.charts and "No curves yet." in page.text


def test_a_stopped_run_shows_the_reason(workdir):
    (workdir / "stopped.txt").write_text("SIGTERM: saved step 60 of 400\n")
    assert Page(render_run_page([read_run_log(workdir)])).facts["state"] == ["stopped: SIGTERM: saved step 60 of 400"]


def test_a_half_written_line_is_ignored_and_reported(workdir):
    path = workdir / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 80, "lo')
    page = Page(render_run_page([read_run_log(workdir)]))
    assert "red: the last line of the metrics is half-written and was ignored." in page.text
    assert page.facts["steps"] == ["60 of 400 (15%)"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"step": 20, "loss": NaN}', "line 1: JSON is malformed"),
        ('{"loss": 1.0}', "line 1: has no step"),
        ('{"step": 20, "loss": "low"}', "line 1: Expected `float`, got `str`"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, words):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RunError, match=f"{re.escape(str(path))}: {words}"):
        read_metrics_log(path)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(RunError, match="no training run"):
        read_run_log(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json: not valid json"):
        read_run_log(tmp_path)


def test_prompts_are_rows_and_steps_are_columns(workdir):
    for step in (20, 40, 60):
        draw(workdir, step, 0, step)
    draw(workdir, 60, 1, 200)  # a prompt that came later
    page = Page(render_run_page([read_run_log(workdir)]))
    assert page.links == ["#run0-0", "#run0-0", "#run0-1", "#run0-1"] and {"run0-0", "run0-1"} <= page.ids
    assert [image["alt"] for image in page.images] == ["prompt 0"] * 3 + ["prompt 1", "sketch", "sketch"]
    assert page.images[2]["src"] == page.images[4]["src"] and page.images[3]["src"] == page.images[5]["src"]
    assert len({image["src"] for image in page.images}) == 4
    assert page.text.count("not sampled") == 2
    assert "Add a &lt;b&gt;circle" in page.text and "<b>" not in page.text


def test_many_steps_are_thinned_but_not_the_first_and_the_last(workdir):
    for step in range(1, 31):
        draw(workdir, step, 0, step)
    steps = re.findall(r"step (\d+)</", render_run_page([read_run_log(workdir)]))
    shown = [int(step) for step in steps]
    assert len(shown) == 12 and shown[0] == 1 and shown[-1] == 30
    assert set(np.diff(shown)) <= {2, 3}


def test_nothing_is_fetched(workdir):
    draw(workdir, 20, 0, 9)
    text = render_run_page([read_run_log(workdir)])
    assert not any(word in text for word in ("http:", "https:", "//", "@import", "<link", 'src=".'))


def test_smoothing_halves_a_weight_after_its_half_life():
    np.testing.assert_allclose(smooth(np.array([2.0, 5.0, 8.0]), 1.0), [2, 4, 44 / 7])
    values = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    weights = 0.5 ** (np.arange(5) / 2)
    np.testing.assert_allclose(smooth(values, 2.0), weights / np.cumsum(weights))


def test_thinning_keeps_spikes():
    values = np.zeros(10000)
    values[[1234, 7777]] = 5, -5
    kept = thin(values, 100)
    assert {1234, 7777} <= set(kept) and len(kept) <= 100 and (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(thin(values[:7], 100), np.arange(7))


def ticks(svg):
    return [float(label.replace(",", "")) for label in re.findall(r">([\d.,]+)</text>", svg)]


def test_a_wide_range_has_a_log_axis():
    steps = np.array([0.0, 100.0])
    wide = draw_chart([Line(steps, np.array([0.01, 10.0]), 0)], log=True)
    assert {0.01, 0.1, 1, 10} <= set(ticks(wide))
    linear = draw_chart([Line(steps, np.array([1.0, 3.0]), 0)], log=True)
    assert {0, 1, 2, 3} <= set(ticks(linear))


@pytest.mark.parametrize("values", [[0.0], [3.0, 3.0], [-1.0, 1.0], [0.0, 0.0]])
def test_charts_of_few_or_equal_values(values):
    steps = np.arange(len(values), dtype=float)
    svg = draw_chart([Line(steps, np.array(values), 0, style) for style in ("noisy", "exact", "sparse")])
    assert svg.startswith("<svg viewBox=") and svg.endswith("</svg>")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (7384, "2 h 3 min"), (90061, "1 d 1 h")],
)
def test_durations(seconds, words):
    assert format_duration(seconds) == words


def test_numbers_and_configs_for_readers():
    assert [format_number(value) for value in (0.12345, 999.4, 12345.6, 0)] == ["0.123", "999", "12,346", "0"]
    assert flatten_config({"a": {"b": 1, "c": {"d": 2}}, "e": {}}) == {"a.b": 1, "a.c.d": 2, "e": {}}


def test_a_series_has_the_rows_that_contain_it():
    log = MetricsLog(({"step": 1, "ce": 2.0}, {"step": 2}, {"step": 3, "ce": 4.0}))
    steps, values = log.series("ce")
    assert steps.tolist() == [1, 3] and values.tolist() == [2, 4]
    assert log.series("mse")[0].size == 0
