r"""The paper's tables in miniature: sampling strategies on the benchmark of shapes world, at known cost.

    python -m benchmarks.miniature --base=out/base --process=out/process_0 --process=out/process_1 \
        --process=out/process_2 --output=out/miniature

Each row is an evaluation by ``launch/evaluate.py``, of the base or of every process model. The process models are
fine-tuned from that base with different training seeds. Finished evaluations are skipped, so a killed run resumes. The
benchmark prints the tables of ``docs/miniature.md``, and writes ``benchmarks/results/miniature.json`` and
``docs/miniature_*.png``, or with ``--count`` both into OUTPUT. A quick test with the shipped models:

    python -m benchmarks.miniature --base=shapes_base --process=shapes --count=2 --samples=1 --best_of=2 --parm=4 \
        --setting=image.num_timesteps=8
"""

import pathlib
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from benchmarks.miniature.plots import PLOTS
from benchmarks.miniature.results import Numbers, Row, collect, read_row_evaluation
from benchmarks.miniature.tables import format_tables
from benchmarks.result import RESULTS, get_cpu_name, get_versions, write_json
from pdgen.cli import fail
from pdgen.evaluate import published
from pdgen.files import new_file
from pdgen.train.release.stages import Stage, run_stages

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).parents[2]
# Contexts have room for the longest trajectory that these allow, so the sampler's own limits, 512 and 256, cost more.
# Of 9,332 training trajectories no prompt has more than 86 tokens and no plan more than 114; 106 plans exceed 96.
LIMITS = ("max_prompt_tokens=96", "text.max_tokens=128")


def define_flags() -> None:
    """Define the flags of this benchmark."""
    flags.DEFINE_string("base", "shapes_base", "the base: a checkpoint, a run's workdir, a shipped model's name")
    flags.DEFINE_multi_string("process", None, "a process model, one for each training seed", required=True)
    flags.DEFINE_string("output", "out/miniature", "folder of the evaluations, ROW/NUMBER/scores each")
    flags.DEFINE_integer("samples", 2, "images of a prompt", lower_bound=1)
    flags.DEFINE_integer("count", None, "prompts of a task at most, for a quick look", lower_bound=1)
    flags.DEFINE_multi_string("setting", [], "NAME=VALUE of the sampler for all rows (repeat it)")
    flags.DEFINE_multi_integer("best_of", [4, 8], "single passes that best of n draws (repeat it)", lower_bound=1)
    flags.DEFINE_integer("stepwise", 2, "candidates of each step of stepwise best of n", lower_bound=1)
    flags.DEFINE_integer("parm", 20, "candidates of PARM; the paper's has 20", lower_bound=1)


def make_rows(best_of: Sequence[int], stepwise: int, parm: int) -> list[Row]:
    """Return the rows of the tables. The first one is the reference of comparisons.

    The paper's other strategies use an external planner or inspector, or draw many images, so they run on the base.
    Stepwise selection needs a model that works in steps.
    """
    geneval, ways = (
        {name: scores[table.columns.index("overall")] for name, scores in table.rows.items()}
        for table in (published.GENEVAL, published.STRATEGIES)
    )
    single = "mode=single_pass"
    return [
        Row("single_pass", "base, single pass", "base", "single_pass", paper=geneval["BAGEL-7B"]),
        Row("think", "base, thinking first", "base", "think"),
        Row("planner", "base, outside planner", "base", "planner", paper=ways["BAGEL and a GPT planner"]),
        Row(
            "inspector",
            "base, outside inspector, one round",
            "base",
            "inspector",
            paper=ways["BAGEL and a GPT inspector, one round"],
        ),
        *(Row(f"best_of_{n}", f"base, best of {n}", "base", "best_of_n", (single, f"strategy.n={n}")) for n in best_of),
        Row(
            f"parm_{parm}",
            f"base, PARM, best of {parm}",
            "base",
            "parm",
            (f"strategy.n={parm}",),
            ways["PARM, best of 20"] if parm == 20 else None,
        ),
        Row("process_single_pass", "process model, single pass", "process", "single_pass"),
        Row("process", "process-driven", "process", "process", paper=ways["process-driven"]),
        Row(
            f"stepwise_{stepwise}",
            f"process-driven, stepwise best of {stepwise}",
            "process",
            "stepwise_best_of_n",
            (f"strategy.n={stepwise}",),
        ),
    ]


def make_evaluations(
    row: Row, base: str, process: Sequence[str], output: pathlib.Path, common: Sequence[str]
) -> list[Stage]:
    """Return the evaluations of a row, one for each of its models.

    Args:
      row: The row.
      base: The base model.
      process: The process models.
      output: The folder of all evaluations.
      common: Flags of ``launch/evaluate.py`` for all rows.
    """
    stages = []
    for number, model in enumerate([base] if row.model == "base" else process):
        folder = output / row.name / str(number)
        own = (
            "--benchmark=shapes",
            f"--checkpoint={model}",
            f"--strategy={row.strategy}",
            f"--output={folder / 'scores'}",
        )
        stages.append(Stage("evaluate", folder, (*own, *common, *(f"--setting={text}" for text in row.settings))))
    return stages


def measure(every: Sequence[Row], stages: Mapping[str, Sequence[Stage]], launch: pathlib.Path) -> Numbers:
    """Run the missing evaluations and return the numbers of all rows with their "commands".

    Args:
      every: The rows.
      stages: The evaluations of each row.
      launch: The folder of ``evaluate.py``.

    Raises:
      EvaluationError: An evaluation failed, has other arguments, or does not match the others.
    """
    run_stages([stage for own in stages.values() for stage in own], launch)
    found = collect(
        every, {name: [read_row_evaluation(one.folder / "scores") for one in own] for name, own in stages.items()}
    )
    for name, own in stages.items():
        found[name]["commands"] = [shlex.join(["python", "launch/evaluate.py", *stage.arguments]) for stage in own]
    return found


def main(argv: list[str]) -> None:
    if argv[1:]:
        fail(f"{argv[1]} is no flag; write --flag=value")
    # An exception ends the evaluation that runs; it resumes when it is started again.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    common = [f"--samples={FLAGS.samples}", *([f"--count={FLAGS.count}"] if FLAGS.count else [])]
    common += [f"--setting={text}" for text in (*LIMITS, *FLAGS.setting)]
    output, every = pathlib.Path(FLAGS.output), make_rows(FLAGS.best_of, FLAGS.stepwise, FLAGS.parm)
    stages = {row.name: make_evaluations(row, FLAGS.base, FLAGS.process, output, common) for row in every}
    try:
        found = measure(every, stages, ROOT / "launch")
    except (ValueError, OSError) as fault:  # every error class of pdgen is a ValueError
        fail(fault)
    command = shlex.join(["python", "-m", "benchmarks.miniature", *sys.argv[1:]])
    facts = {"cpu": get_cpu_name(), **get_versions("jax", "pdgen"), "command": command, "samples": FLAGS.samples}
    print(format_tables(found))
    results, docs = (RESULTS, ROOT / "docs") if FLAGS.count is None else (output, output)
    print(write_json("miniature", {**facts, "rows": found}, results))
    for name, plot in PLOTS.items():
        path = docs / f"miniature_{name}.png"
        with new_file(path) as partial:
            plot(found).savefig(partial, dpi=100, format="png")
        print(path)
