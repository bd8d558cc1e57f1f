"""Scores a checkpoint, or a folder of images, on GenEval, WISE or the benchmarks of shapes world, and compares runs.

python launch/evaluate.py --benchmark=shapes --output=out/scores
python launch/evaluate.py --benchmark=abilities --checkpoint=out/base --output=out/abilities
python launch/evaluate.py --benchmark=geneval --metadata=evaluation_metadata.jsonl --images=DIR --output=out/scores
python launch/evaluate.py --benchmark=wise --metadata=cultural_common_sense.json --images=DIR --output=out/wise \
    --judge_url=https://api.openai.com/v1 --judge_model=gpt-4o --judge_key_variable=OPENAI_API_KEY
python launch/evaluate.py compare out/scores out/single-pass-scores --output=out/compared

score, the default mode, resumes after a kill. OUTPUT gets index.html, the benchmark's own files, summary.json and a CSV
file for each table; of shapes world process.jsonl says what the stages of every trajectory are worth. "abilities" asks
a base model to draw, edit and read; its settings are those of the base model's modes, with image.num_timesteps=25,
text.max_tokens=80 and max_prompt_tokens=128 where --setting says nothing else. Exit status: 0; 1 where a judge gave no
valid answer for some image; 2 for a fault of the input.

compare puts runs of mode score side by side: scores, differences to the first one with their intervals, cost against
score. All are of one benchmark and the same prompts. Runs whose folders have one name are told apart by more of their
paths. OUTPUT gets index.html, comparison.json and a CSV file for each table.
"""

import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from msgspec import to_builtins
from tqdm import tqdm

from pdgen.checkpoints.load import find
from pdgen.checkpoints.shipped import BASE, PROCESS, shipped_name
from pdgen.cli import Mode, exit_on_sigterm, run_modes
from pdgen.evaluate import folder, scoring, shapes, tables, wise
from pdgen.evaluate.abilities import prompts as abilities
from pdgen.evaluate.abilities import run as ability_run
from pdgen.evaluate.abilities.scores import ability_tables
from pdgen.evaluate.comparison import write_comparison
from pdgen.evaluate.detectors.exact import DETECTORS, load_detector
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.gallery import Gallery, ability_galleries, galleries, wise_galleries
from pdgen.evaluate.generator import make_generate, read_recipe, read_values
from pdgen.evaluate.geneval import check_prompts
from pdgen.evaluate.leaks import Leaks, find_leaks, sentence, training_prompts
from pdgen.evaluate.page import write_pages, write_summary
from pdgen.evaluate.process import tables as process_tables
from pdgen.evaluate.process.trajectories import TRAJECTORIES, cost_tables, judge_trajectories
from pdgen.evaluate.tables import Table
from pdgen.files import new_file
from pdgen.sample.compiled import keep_compiled
from pdgen.sample.strategies.table import STRATEGIES
from pdgen.teachers.advisers import Advisers, endpoint_advisers, exact_advisers
from pdgen.teachers.endpoint import Endpoint
from pdgen.teachers.endpoint import Settings as EndpointSettings

BENCHMARKS = ["geneval", "wise", "shapes", "abilities"]
BENCHMARK = flags.DEFINE_enum("benchmark", None, BENCHMARKS, "What to score on.")
IMAGES = flags.DEFINE_string("images", None, "A folder of images in the benchmark's own layout.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Makes the images: a pdgen checkpoint or a run's workdir. Without --images by default the "
    f"model that the package brings along: {PROCESS}, for abilities {BASE}.",
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for images, scores and tables.")
METADATA = flags.DEFINE_multi_string("metadata", [], "GenEval's prompt list, or WISE's prompt files (repeat it).")
TRAINING_DATA = flags.DEFINE_multi_string(
    "training_data", [], "Compared with the prompts: a data set, or a file with a prompt a line (repeat it)."
)
COUNT = flags.DEFINE_integer(
    "count", None, "Of shapes and abilities: prompts of each task or row at most, for a quick look.", lower_bound=1
)
SAMPLES = flags.DEFINE_integer("samples", folder.SAMPLES, "Images of a prompt; of WISE always 1.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the first image; each further one has the next.", lower_bound=0)
STRATEGY = flags.DEFINE_enum("strategy", "process", list(STRATEGIES), "How a checkpoint comes to an image.")
SETTING = flags.DEFINE_multi_string(
    "setting", [], "NAME=VALUE of sampler or strategy, such as image.num_timesteps=50 or strategy.n=4 (repeat it)."
)
BATCH = flags.DEFINE_integer("batch", 8, "Images that are made together.", lower_bound=1)
DETECTOR = flags.DEFINE_enum("detector", None, DETECTORS, "By default the benchmark's own.")
WEIGHTS = flags.DEFINE_string("weights", "", "Of mask2former: a name on the Hugging Face hub, or a folder.")
DEVICE = flags.DEFINE_string("device", "", "Of mask2former: cuda or cpu; by default what there is.")
JUDGE_URL = flags.DEFINE_string("judge_url", "", "Chat endpoint of WISE's judge and of strategies' advisers.")
JUDGE_MODEL = flags.DEFINE_string("judge_model", "", "Its model.")
JUDGE_KEY = flags.DEFINE_string("judge_key_variable", "", "Environment variable that holds its key.")
JUDGE_ANSWERS = flags.DEFINE_integer("judge_answers", 3, "Times a malformed answer is asked for.", lower_bound=1)
JUDGE_PARAMETERS = flags.DEFINE_string("judge_parameters", "{}", "JSON of further parameters of a request.")
JUDGE_PRICES = flags.DEFINE_list("judge_prices", ["0", "0"], "Of a million tokens in and out.")
JUDGEMENTS = flags.DEFINE_list("judgements", list(wise.JUDGEMENTS), "WISE: graded gives scorings A and C, binary B.")
JUDGE_RULES = flags.DEFINE_multi_string(
    "judge_rules", [], "JUDGEMENT=FILE: WISE's rules in other words, such as graded=original.txt (repeat it)."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "WISE: print what judging would ask and cost, and stop.")

# GenEval's protocol guides over the whole schedule; a user's own --setting comes after it.
PROTOCOL = {"geneval": {"image.interval": [0.0, 1.0]}}


def chosen_checkpoint() -> str | None:
    """What --checkpoint names, else the model that the package brings along; None where --images are scored."""
    if CHECKPOINT.value is None and IMAGES.value is None:
        return BASE if BENCHMARK.value == "abilities" else PROCESS
    return CHECKPOINT.value


def check_flags() -> None:
    """Raises EvaluationError for flags that do not go together."""
    if IMAGES.value is not None and CHECKPOINT.value is not None:
        raise EvaluationError("name either --images, a folder to score, or --checkpoint, which makes the images")
    if BENCHMARK.value == "shapes" and METADATA.value:
        raise EvaluationError("--metadata: the shapes benchmark makes its own list; OUTPUT/metadata.jsonl holds it")
    if BENCHMARK.value not in ("shapes", "abilities") and COUNT.value is not None:
        raise EvaluationError("--count: is of shapes and abilities alone; give a shorter list by --metadata")
    if BENCHMARK.value == "geneval" and len(METADATA.value) != 1:
        raise EvaluationError("--metadata: name GenEval's evaluation_metadata.jsonl, once")
    if BENCHMARK.value == "wise" and not METADATA.value:
        raise EvaluationError("--metadata: name WISE's prompt files, one after the other")
    if BENCHMARK.value == "wise" and not JUDGE_URL.value:
        raise EvaluationError("--judge_url: name the chat endpoint that judges, and --judge_model")
    if wrong := [name for name in JUDGEMENTS.value if name not in wise.JUDGEMENTS]:
        raise EvaluationError(f"--judgements={wrong[0]}: none of {', '.join(wise.JUDGEMENTS)}")


def check_strays() -> None:
    """Raises EvaluationError for a flag that would do nothing."""
    drawing = ["strategy", "setting", "seed", "batch"]
    detecting, judging = ["detector", "weights", "device", "samples"], ["judgements", "judge_rules", "dry_run"]
    asking = ["judge_url", "judge_model", "judge_key_variable", "judge_answers", "judge_parameters", "judge_prices"]
    without = {"--images": drawing} if chosen_checkpoint() is None else {}
    own = [*detecting, *judging, *asking, "images", "metadata", "training_data", "strategy"]
    strays_of = {"wise": detecting, "abilities": own}
    without[f"--benchmark={BENCHMARK.value}"] = strays_of.get(BENCHMARK.value, judging)
    for flag, strays in without.items():
        if given := [name for name in strays if flags.FLAGS[name].present]:
            raise EvaluationError(f"--{given[0]}: does nothing with {flag}; leave it out")
    if DRY_RUN.value and chosen_checkpoint() is not None:
        raise EvaluationError("--dry_run: prices images that are there; name them by --images")


def endpoint_settings(output: pathlib.Path) -> EndpointSettings:
    """The judge's endpoint as the flags say. Raises ValueError for a value that cannot be."""
    try:
        parameters = {"temperature": 0.0, "max_tokens": 1024, **json.loads(JUDGE_PARAMETERS.value)}
        price_in, price_out = map(float, JUDGE_PRICES.value)
    except (ValueError, TypeError) as fault:
        raise EvaluationError(f"--judge_parameters: a JSON object, --judge_prices: two numbers; {fault}") from None
    return EndpointSettings(
        url=JUDGE_URL.value,
        model=JUDGE_MODEL.value,
        cache=str(output / "answers"),
        key_variable=JUDGE_KEY.value,
        parameters=parameters,
        answers=JUDGE_ANSWERS.value,
        input_price=price_in,
        output_price=price_out,
    )


def judgements() -> dict[str, wise.Judgement]:
    """WISE's judgements that the flags name, with their rules. Raises EvaluationError."""
    wanted = {name: wise.JUDGEMENTS[name] for name in JUDGEMENTS.value}
    for text in JUDGE_RULES.value:
        name, equals, path = text.partition("=")
        if not equals or name not in wanted:
            raise EvaluationError(f"--judge_rules={text}: write JUDGEMENT=FILE, JUDGEMENT one of {', '.join(wanted)}")
        wanted[name] = wanted[name]._replace(rules=wise.read_rules(pathlib.Path(path)))
    return wanted


def advisers(output: pathlib.Path) -> Advisers:
    """Whom strategies ask: the endpoint if one is named, else the exact ones of shapes world."""
    return endpoint_advisers(Endpoint(endpoint_settings(output))) if JUDGE_URL.value else exact_advisers()


def made_images(output: pathlib.Path, jobs: Sequence[folder.Job]) -> tuple[pathlib.Path, dict[str, Any]]:
    """The folder with all images of the jobs, those that lacked made by the checkpoint, and what it made them by."""
    values = PROTOCOL.get(BENCHMARK.value, {}) | {"batch_size": BATCH.value} | read_values(SETTING.value)
    checkpoint = chosen_checkpoint()
    assert checkpoint is not None
    recipe = read_recipe(checkpoint, STRATEGY.value, values)
    images = output / "images"
    made_by = recipe.facts()
    folder.begin(images, {"benchmark": BENCHMARK.value, **made_by}, jobs)
    keep_compiled()
    with tqdm(total=len(jobs), unit=" images", desc="drawing", smoothing=0.1) as bar:
        generate = make_generate(recipe, advisers(output))
        folder.make(images, output / TRAJECTORIES, jobs, generate, BATCH.value, bar.update)
    return images, {"checkpoint": named(recipe.checkpoint), "seed": SEED.value, "made_by": made_by}


def named(checkpoint: pathlib.Path) -> str:
    """A checkpoint's folder, or the name of the model that the package brings along."""
    return shipped_name(checkpoint) or str(checkpoint)


def leaks(prompts: Sequence[str]) -> Leaks:
    """What the training sets that the flags name hold of the prompts."""
    with tqdm(unit=" training prompts", disable=not TRAINING_DATA.value) as bar:
        training = (p for path in TRAINING_DATA.value for p in training_prompts(pathlib.Path(path), bar.update))
        return find_leaks(training, prompts, TRAINING_DATA.value)


def write_results(
    output: pathlib.Path, facts: dict[str, Any], results: Sequence[Table], shown: Sequence[Gallery]
) -> None:
    """Writes the files and the pages of an evaluation."""
    write_summary(output, facts, results)
    source = (
        {"images": IMAGES.value}
        if chosen_checkpoint() is None
        else {
            "strategy": STRATEGY.value,
            "settings": " ".join(SETTING.value) or "defaults",
            "first seed": SEED.value,
        }
    )
    if BENCHMARK.value == "abilities":
        del source["strategy"]
    write_pages(output, facts, source, results, shown)


def run_geneval(output: pathlib.Path) -> int:
    """GenEval and the shapes benchmark: makes or finds the images, detects, judges; returns the exit status."""
    if BENCHMARK.value == "shapes":
        most = COUNT.value or max(shapes.COUNTS.values())
        prompts = shapes.benchmark({task: min(count, most) for task, count in shapes.COUNTS.items()})
    else:
        prompts = folder.read_prompts(pathlib.Path(METADATA.value[0]))
    own = "shapes" if BENCHMARK.value == "shapes" else "mask2former"
    detector = load_detector(DETECTOR.value or own, WEIGHTS.value, DEVICE.value)
    check_prompts(prompts, detector.classes, detector.name)  # before hours of drawing, not after
    found = leaks([p.metadata.prompt for p in prompts])
    if chosen_checkpoint() is not None:
        images, source = made_images(output, folder.geneval_jobs(prompts, SAMPLES.value, SEED.value))
        folder.write_metadata(images, prompts)
    else:
        assert IMAGES.value is not None
        images, source = pathlib.Path(IMAGES.value), {}
    files = folder.find_samples(images, prompts, SAMPLES.value)
    output.mkdir(parents=True, exist_ok=True)
    folder.write_prompts(output / "metadata.jsonl", prompts)
    with tqdm(total=sum(map(len, files)), unit=" images", desc="detecting", smoothing=0.1) as bar:
        results = scoring.score(files, prompts, detector, output, bar.update)
    table = scoring.summary_table(scoring.summarise(scoring.by_task(results)), BENCHMARK.value)
    facts = {
        "benchmark": BENCHMARK.value,
        "detector": detector.identity,
        "samples": SAMPLES.value,
        **source,
        "leaks": to_builtins(found),
        "findings": [sentence(found)],
    }
    made = [table]
    if source:
        exact = BENCHMARK.value == "shapes"
        made += process_tables.tables(judge_trajectories(output, prompts)) if exact else cost_tables(output)
    write_results(output, facts, made, galleries(results, output, output / TRAJECTORIES if source else None))
    official = scoring.official_text(results)
    with new_file(output / "summary.txt") as partial:
        partial.write_text(official + "\n", encoding="utf-8")
    print("\n\n".join([sentence(found), official, *map(tables.as_text, made)]))
    print(f"\n{output / 'index.html'}")
    return 0


def run_abilities(output: pathlib.Path) -> int:
    """What a base model can do: samples, judges, tells; returns the exit status."""
    values = {"batch_size": BATCH.value} | read_values(SETTING.value)
    settings, checkpoint = ability_run.ability_settings(values), find(chosen_checkpoint())
    draws = abilities.draws(COUNT.value or abilities.COUNT, SEED.value)
    keep_compiled()
    with tqdm(total=len(draws), unit=" draws", desc="sampling", smoothing=0.1) as bar:
        outcomes = ability_run.run_draws(draws, checkpoint, settings, output, bar.update)
    made = ability_tables(outcomes)
    image = settings["single_pass"].image
    finding = f"Images are drawn with image.num_timesteps={image.num_timesteps} and image.text_scale={image.text_scale}"
    facts = {
        "benchmark": "abilities",
        "checkpoint": named(checkpoint),
        "seed": SEED.value,
        "made_by": ability_run.made_by(checkpoint, settings),
        "findings": [f"{finding}; texts are greedy unless a setting says otherwise."],
    }
    write_results(output, facts, made, ability_galleries(outcomes, output))
    print("\n\n".join([*facts["findings"], *map(tables.as_text, made)]))
    print(f"\n{output / 'index.html'}")
    return 0


def run_wise(output: pathlib.Path) -> int:
    """WISE: makes or finds the images, says the price, asks the judge; returns the exit status."""
    prompts = wise.read_wise([pathlib.Path(path) for path in METADATA.value])
    settings, asked = endpoint_settings(output), judgements()
    endpoint = None if DRY_RUN.value else Endpoint(settings)  # a missing key is told before anything is made
    found = leaks([p.text for p in prompts])
    if chosen_checkpoint() is not None:
        images, source = made_images(output, wise.wise_jobs(prompts, SEED.value))
    else:
        assert IMAGES.value is not None
        images, source = pathlib.Path(IMAGES.value), {}
    files = wise.find_images(images, prompts)
    estimate = Endpoint(settings, dry_run=True)
    wise.judge_images(prompts, files, estimate, asked)
    print(f"{sentence(found)}\n\n{estimate.ledger.report()}\n", flush=True)
    if endpoint is None:
        return 0
    with tqdm(total=len(files) * len(asked), unit=" answers", desc="judging", smoothing=0.1) as bar:
        judged = wise.judge_images(prompts, files, endpoint, asked, bar.update)
    output.mkdir(parents=True, exist_ok=True)
    wise.write_scores(output, prompts, judged)
    table = wise.wise_table(wise.score_all(judged.answers, prompts), settings.model)
    rules = {name: hashlib.sha256(one.rules.encode()).hexdigest()[:8] for name, one in asked.items()}
    judge = {"model": settings.model, "questions": wise.VERSION, "rules": rules, "parameters": settings.parameters}
    unanswered = [
        f"No valid {name} answer for {len(faults)} images ({wise.spans(sorted(faults))}); raise --judge_answers to ask "
        "again."
        for name, faults in judged.faults.items()
        if faults
    ]
    findings = [sentence(found), *unanswered]
    facts = {
        "benchmark": "wise",
        "judge": judge,
        "prompts": wise.digest(prompts),
        **source,
        "leaks": to_builtins(found),
        "findings": findings,
    }
    made = [table, *(cost_tables(output) if source else [])]
    trajectories = output / TRAJECTORIES if source else None
    write_results(output, facts, made, wise_galleries(prompts, files, judged, output, trajectories))
    print("\n\n".join([endpoint.ledger.report(), *map(tables.as_text, made)]))
    for line in unanswered:
        print(line, file=sys.stderr)
    print(f"\n{output / 'index.html'}")
    return 1 if unanswered else 0


def score() -> int:
    """Scores images on the benchmark; returns the exit status. Raises ValueError, OSError."""
    exit_on_sigterm()
    check_flags()
    check_strays()
    run = {"wise": run_wise, "abilities": run_abilities}.get(BENCHMARK.value, run_geneval)
    return run(pathlib.Path(OUTPUT.value))


def compare(*runs: str) -> None:
    """Compares evaluated runs, the output folders of mode score. Raises EvaluationError, OSError."""
    output = pathlib.Path(OUTPUT.value)
    print(write_comparison([pathlib.Path(run) for run in runs], output))
    print(f"\n{output / 'index.html'}")


MODES = {
    "score": Mode(score, needs=("benchmark", "output")),
    "compare": Mode(compare, ("output",), needs=("output",), arguments=True),
}

if __name__ == "__main__":
    run_modes(MODES, default="score")
