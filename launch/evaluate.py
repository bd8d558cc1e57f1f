r"""Scores a checkpoint, or a folder of images, on GenEval, WISE or the benchmarks of shapes world, and compares runs.

python launch/evaluate.py --benchmark=shapes --output=out/scores
python launch/evaluate.py --benchmark=abilities --checkpoint=out/base --output=out/abilities
python launch/evaluate.py --benchmark=geneval --metadata=evaluation_metadata.jsonl --images=DIR --output=out/scores
python launch/evaluate.py --benchmark=wise --metadata=cultural_common_sense.json --images=DIR --output=out/wise \
    --judge_url=https://api.openai.com/v1 --judge_model=gpt-4o --judge_key_variable=OPENAI_API_KEY
python launch/evaluate.py verifier --checkpoint=out/verifier --output=out/verified out/estimates
python launch/evaluate.py compare out/scores out/single-pass-scores --output=out/compared

score, the default mode, resumes after a kill. It writes index.html, the benchmark's own files, summary.json and a CSV
file for each table into OUTPUT. For shapes world, process.jsonl has the measures of every trajectory's stages.
"abilities" tests how a base model draws, edits and reads. It uses the settings of the base model's modes with
image.num_timesteps=25, text.max_tokens=96 and max_prompt_tokens=128, unless --setting overrides them. The exit status
is 0; 1 if a judge gave no valid answer for some image; 2 for invalid input.

compare puts the scores of several runs of mode score side by side, with their differences to the first run, intervals,
and cost against score. All runs must have the same benchmark and prompts. Runs whose folders have the same name are
named by more of their paths. It writes index.html, comparison.json and a CSV file for each table into OUTPUT.

verifier compares a learned verifier (--checkpoint) with the exact one on data of build_data.py estimates, by the share
of the steps done, and says how well its probabilities are calibrated.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from msgspec import to_builtins

from pdgen.checkpoints.load import find
from pdgen.checkpoints.shipped import BASE, PROCESS, shipped_name
from pdgen.cli import Mode, exit_on_sigterm, require, run_modes
from pdgen.evaluate import folder, shapes, tables, wise
from pdgen.evaluate import verifier as verifiers
from pdgen.evaluate.abilities import prompts as abilities
from pdgen.evaluate.abilities import run as ability_run
from pdgen.evaluate.abilities.scores import make_ability_tables
from pdgen.evaluate.comparison import write_comparison
from pdgen.evaluate.detectors.exact import DETECTORS, load_detector
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.gallery import ImageGallery, make_ability_galleries, make_geneval_galleries, make_wise_galleries
from pdgen.evaluate.generator import make_generator, parse_assignments, read_recipe
from pdgen.evaluate.geneval import scoring
from pdgen.evaluate.geneval.rule import check_prompts
from pdgen.evaluate.leaks import Leaks, describe_leaks, find_leaks, read_training_prompts
from pdgen.evaluate.page import write_pages, write_summary
from pdgen.evaluate.process import tables as process_tables
from pdgen.evaluate.process.trajectories import TRAJECTORIES, judge_trajectories, make_cost_tables
from pdgen.evaluate.tables import Table
from pdgen.files import check_writable, sha256
from pdgen.json_text import load_json
from pdgen.progress_bar import ProgressBar
from pdgen.sample.compiled import keep_compiled
from pdgen.sample.strategies.table import STRATEGIES
from pdgen.sample.strategies.verifier import load_verifier
from pdgen.teachers.advisers import make_endpoint_advisers, make_exact_advisers
from pdgen.teachers.endpoint import Endpoint, EndpointSettings

BENCHMARKS = ["geneval", "wise", "shapes", "abilities"]
BENCHMARK = flags.DEFINE_enum("benchmark", None, BENCHMARKS, "The benchmark.")
IMAGES = flags.DEFINE_string("images", None, "A folder of images in the benchmark's own layout.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Generates the images: a pdgen checkpoint or a run's workdir. Default without --images: the shipped "
    f"model {PROCESS}, for abilities {BASE}.",
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for images, scores and tables.")
METADATA = flags.DEFINE_multi_string("metadata", [], "GenEval's prompt list, or WISE's prompt files (repeat it).")
TRAINING_DATA = flags.DEFINE_multi_string(
    "training_data", [], "A data set or a file of prompts, searched for the benchmark's prompts (repeat it)."
)
COUNT = flags.DEFINE_integer(
    "count", None, "shapes, abilities: largest number of prompts of each task or row.", lower_bound=1
)
SAMPLES = flags.DEFINE_integer("samples", folder.SAMPLES, "Images of each prompt; always 1 for WISE.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the first image; each further one has the next.", lower_bound=0)
STRATEGY = flags.DEFINE_enum("strategy", "process", list(STRATEGIES), "The sampling strategy.")
SETTING = flags.DEFINE_multi_string(
    "setting", [], "NAME=VALUE of the sampler or strategy, such as image.num_timesteps=50 or strategy.n=4 (repeat it)."
)
BATCH = flags.DEFINE_integer("batch", 8, "Number of images sampled at once.", lower_bound=1)
DETECTOR = flags.DEFINE_enum("detector", None, DETECTORS, "The detector; by default the benchmark's own.")
WEIGHTS = flags.DEFINE_string("weights", "", "mask2former: a name on the Hugging Face hub, or a folder.")
DEVICE = flags.DEFINE_string("device", "", "mask2former: cuda or cpu; by default cuda if available.")
JUDGE_URL = flags.DEFINE_string("judge_url", "", "Chat endpoint of WISE's judge and of the strategies' advisers.")
JUDGE_MODEL = flags.DEFINE_string("judge_model", "", "The endpoint's model.")
JUDGE_KEY = flags.DEFINE_string("judge_key_variable", "", "Environment variable with the endpoint's key.")
JUDGE_ANSWERS = flags.DEFINE_integer("judge_answers", 3, "Attempts to get a well-formed answer.", lower_bound=1)
JUDGE_PARAMETERS = flags.DEFINE_string("judge_parameters", "{}", "Further parameters of a request, as JSON.")
JUDGE_PRICES = flags.DEFINE_list("judge_prices", ["0", "0"], "Prices of a million input and output tokens.")
JUDGEMENTS = flags.DEFINE_list("judgements", list(wise.JUDGEMENTS), "WISE: graded gives scorings A and C, binary B.")
JUDGE_RULES = flags.DEFINE_multi_string(
    "judge_rules", [], "JUDGEMENT=FILE: a text file with other rules for WISE, such as graded=original.txt (repeat it)."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "WISE: print the requests and their price, and stop.")

# GenEval's protocol guides over the whole schedule. A --setting overrides it.
PROTOCOL = {"geneval": {"image.interval": [0.0, 1.0]}}


def choose_checkpoint() -> str:
    """Return --checkpoint, or by default the benchmark's shipped model."""
    if CHECKPOINT.value is not None:
        return CHECKPOINT.value
    return BASE if BENCHMARK.value == "abilities" else PROCESS


def check_flags() -> None:
    """Raise EvaluationError for flags that contradict each other."""
    if IMAGES.value is not None and CHECKPOINT.value is not None:
        raise EvaluationError("name either --images, a folder to score, or --checkpoint, which generates the images")
    if BENCHMARK.value == "shapes" and METADATA.value:
        raise EvaluationError("--metadata: the shapes benchmark makes its own list, OUTPUT/metadata.jsonl")
    if BENCHMARK.value not in ("shapes", "abilities") and COUNT.value is not None:
        raise EvaluationError("--count: is only for shapes and abilities; give a shorter list with --metadata")
    if BENCHMARK.value == "geneval" and len(METADATA.value) != 1:
        raise EvaluationError("--metadata: name GenEval's evaluation_metadata.jsonl, once")
    if BENCHMARK.value == "wise" and not METADATA.value:
        raise EvaluationError("--metadata: name WISE's prompt files; repeat the flag for several")
    if BENCHMARK.value == "wise" and not JUDGE_URL.value:
        raise EvaluationError("--judge_url: name the judge's chat endpoint, and --judge_model")
    if wrong := [name for name in JUDGEMENTS.value if name not in wise.JUDGEMENTS]:
        raise EvaluationError(f"--judgements={wrong[0]}: is not one of {', '.join(wise.JUDGEMENTS)}")


def check_unused_flags() -> None:
    """Raise EvaluationError for a flag that would have no effect."""
    drawing = ["strategy", "setting", "seed", "batch"]
    detecting, judging = ["detector", "weights", "device", "samples"], ["judgements", "judge_rules", "dry_run"]
    asking = ["judge_url", "judge_model", "judge_key_variable", "judge_answers", "judge_parameters", "judge_prices"]
    unused_with = {"--images": drawing} if IMAGES.value is not None else {}
    no_effect = [*detecting, *judging, *asking, "images", "metadata", "training_data", "strategy"]
    unused_by = {"wise": detecting, "abilities": no_effect}
    unused_with[f"--benchmark={BENCHMARK.value}"] = unused_by.get(BENCHMARK.value, judging)
    for flag, unused in unused_with.items():
        if given := [name for name in unused if flags.FLAGS[name].present]:
            raise EvaluationError(f"--{given[0]}: does nothing with {flag}; leave it out")
    if DRY_RUN.value and IMAGES.value is None:
        raise EvaluationError("--dry_run: needs existing images; name them with --images")


def read_endpoint_settings(output: pathlib.Path) -> EndpointSettings:
    """Return the settings of the judge's endpoint. Raises ValueError for an invalid flag."""
    try:
        parameters = {"temperature": 0.0, "max_tokens": 1024, **load_json(JUDGE_PARAMETERS.value)}
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


def read_judgements() -> dict[str, wise.Judgement]:
    """Return WISE's judgements that the flags select, with their rules. Raises EvaluationError for invalid rules."""
    wanted = {name: wise.JUDGEMENTS[name] for name in JUDGEMENTS.value}
    for text in JUDGE_RULES.value:
        name, equals, path = text.partition("=")
        if not equals or name not in wanted:
            raise EvaluationError(f"--judge_rules={text}: write JUDGEMENT=FILE, JUDGEMENT one of {', '.join(wanted)}")
        wanted[name] = wanted[name]._replace(rules=wise.read_rules(pathlib.Path(path)))
    return wanted


def make_images(output: pathlib.Path, jobs: Sequence[folder.ImageJob]) -> tuple[pathlib.Path, dict[str, Any]]:
    """Generate the missing images of the jobs, unless --images has them.

    Returns:
      The folder of all images, and facts about their origin; none for --images.
    """
    if IMAGES.value is not None:
        return pathlib.Path(IMAGES.value), {}
    values = PROTOCOL.get(BENCHMARK.value, {}) | {"batch_size": BATCH.value} | parse_assignments(SETTING.value)
    recipe = read_recipe(choose_checkpoint(), STRATEGY.value, values)
    images = output / "images"
    made_by = recipe.facts()
    folder.begin_generation(images, {"benchmark": BENCHMARK.value, **made_by}, jobs)
    keep_compiled()
    endpoint = Endpoint(read_endpoint_settings(output)) if JUDGE_URL.value else None
    advisers = make_endpoint_advisers(endpoint) if endpoint else make_exact_advisers()
    with ProgressBar(total=len(jobs), unit=" images", desc="sampling", smoothing=0.1) as bar:
        generate = make_generator(recipe, advisers)
        folder.generate_images(images, output / TRAJECTORIES, jobs, generate, BATCH.value, bar.update)
    checkpoint = shipped_name(recipe.checkpoint) or str(recipe.checkpoint)
    return images, {"checkpoint": checkpoint, "seed": SEED.value, "made_by": made_by}


def find_training_leaks(prompts: Sequence[str]) -> Leaks:
    """Compare the prompts with the training sets of --training_data."""
    with ProgressBar(unit=" training prompts", disable=not TRAINING_DATA.value) as bar:
        training = (p for path in TRAINING_DATA.value for p in read_training_prompts(pathlib.Path(path), bar.update))
        return find_leaks(training, prompts, TRAINING_DATA.value)


def report(
    output: pathlib.Path,
    facts: dict[str, Any],
    results: Sequence[Table],
    shown: Sequence[ImageGallery],
    lines: Sequence[str],
) -> None:
    """Write the files and the pages of an evaluation; print the lines and the tables."""
    write_summary(output, facts, results)
    source: dict[str, Any] = {} if BENCHMARK.value == "abilities" else {"strategy": STRATEGY.value}
    source |= {"settings": " ".join(SETTING.value) or "defaults", "first seed": SEED.value}
    if IMAGES.value is not None:
        source = {"images": IMAGES.value}
    write_pages(output, facts, source, results, shown)
    print("\n\n".join([*lines, *map(tables.format_text, results)]))
    print(f"\n{output / 'index.html'}")


def run_geneval(output: pathlib.Path) -> None:
    """Run GenEval or the shapes benchmark: generate or find the images, detect, judge, report."""
    exact = BENCHMARK.value == "shapes"
    if exact:
        most = COUNT.value or max(shapes.COUNTS.values())
        prompts = shapes.make_benchmark({task: min(count, most) for task, count in shapes.COUNTS.items()})
    else:
        prompts = folder.read_prompts(pathlib.Path(METADATA.value[0]))
    detector = load_detector(DETECTOR.value or ("shapes" if exact else "mask2former"), WEIGHTS.value, DEVICE.value)
    check_prompts(prompts, detector.classes, detector.name)  # before hours of sampling, not after
    found = find_training_leaks([p.metadata.prompt for p in prompts])
    images, source = make_images(output, folder.make_geneval_jobs(prompts, SAMPLES.value, SEED.value))
    if source:
        folder.write_metadata(images, prompts)
    files = folder.find_samples(images, prompts, SAMPLES.value)
    output.mkdir(parents=True, exist_ok=True)
    folder.write_prompts(output / "metadata.jsonl", prompts)
    with ProgressBar(total=sum(map(len, files)), unit=" images", desc="detecting", smoothing=0.1) as bar:
        results = scoring.score_images(files, prompts, detector, output, bar.update)
    table = scoring.make_summary_table(scoring.summarise(scoring.group_by_task(results)), require(BENCHMARK))
    facts = {
        "benchmark": BENCHMARK.value,
        "detector": detector.identity,
        "samples": SAMPLES.value,
        **source,
        "leaks": to_builtins(found),
        "findings": [describe_leaks(found)],
    }
    made = [table]
    if source:
        made += process_tables.make_tables(judge_trajectories(output, prompts)) if exact else make_cost_tables(output)
    official = scoring.format_official_summary(results)
    tables.write_files(output, {"summary.txt": official + "\n"})
    shown = make_geneval_galleries(results, output, output / TRAJECTORIES if source else None)
    report(output, facts, made, shown, [describe_leaks(found), official])


def run_abilities(output: pathlib.Path) -> None:
    """Run the abilities benchmark: sample, judge, report."""
    values = {"batch_size": BATCH.value} | parse_assignments(SETTING.value)
    settings, checkpoint = ability_run.read_ability_settings(values), find(choose_checkpoint())
    draws = abilities.make_draws(COUNT.value or abilities.COUNT, SEED.value)
    keep_compiled()
    with ProgressBar(total=len(draws), unit=" draws", desc="sampling", smoothing=0.1) as bar:
        outcomes = ability_run.run_draws(draws, checkpoint, settings, output, bar.update)
    made = make_ability_tables(outcomes)
    image = settings["single_pass"].image
    finding = f"Images are drawn with image.num_timesteps={image.num_timesteps} and image.text_scale={image.text_scale}"
    facts = {
        "benchmark": "abilities",
        "checkpoint": shipped_name(checkpoint) or str(checkpoint),
        "seed": SEED.value,
        "made_by": ability_run.collect_facts(checkpoint, settings),
        "findings": [f"{finding}; texts are greedy unless a setting says otherwise."],
    }
    report(output, facts, made, make_ability_galleries(outcomes, output), facts["findings"])


def run_wise(output: pathlib.Path) -> int:
    """Run WISE: generate or find the images, print the price, ask the judge. Return the exit status."""
    prompts = wise.read_wise_prompts([pathlib.Path(path) for path in METADATA.value])
    settings, asked = read_endpoint_settings(output), read_judgements()
    endpoint = None if DRY_RUN.value else Endpoint(settings)  # fails for a missing key, before anything is generated
    found = find_training_leaks([p.text for p in prompts])
    images, source = make_images(output, wise.make_wise_jobs(prompts, SEED.value))
    files = wise.find_images(images, prompts)
    estimate = Endpoint(settings, dry_run=True)
    wise.judge_images(prompts, files, estimate, asked)
    print(f"{describe_leaks(found)}\n\n{estimate.ledger.report()}\n", flush=True)
    if endpoint is None:
        return 0
    with ProgressBar(total=len(files) * len(asked), unit=" answers", desc="judging", smoothing=0.1) as bar:
        judged = wise.judge_images(prompts, files, endpoint, asked, bar.update)
    output.mkdir(parents=True, exist_ok=True)
    wise.write_scores(output, prompts, judged)
    table = wise.make_wise_table(wise.compute_all_figures(judged.answers, prompts), settings.model)
    judge = {
        "model": settings.model,
        "questions": wise.QUESTION_VERSION,
        "rules": {name: sha256(one.rules.encode())[:8] for name, one in asked.items()},
        "parameters": settings.parameters,
    }
    unanswered = [
        f"No valid {name} answer for {len(faults)} images ({wise.format_ranges(sorted(faults))}); "
        "raise --judge_answers to ask again."
        for name, faults in judged.faults.items()
        if faults
    ]
    facts = {
        "benchmark": "wise",
        "judge": judge,
        "prompts": wise.digest_prompts(prompts),
        **source,
        "leaks": to_builtins(found),
        "findings": [describe_leaks(found), *unanswered],
    }
    made = [table, *(make_cost_tables(output) if source else [])]
    shown = make_wise_galleries(prompts, files, judged, output, output / TRAJECTORIES if source else None)
    report(output, facts, made, shown, [endpoint.ledger.report()])
    for line in unanswered:
        print(line, file=sys.stderr)
    return 1 if unanswered else 0


def score() -> int | None:
    """Score images on the benchmark and return the exit status."""
    exit_on_sigterm()
    check_flags()
    check_unused_flags()
    check_writable(require(OUTPUT))
    run = {"wise": run_wise, "abilities": run_abilities}.get(BENCHMARK.value, run_geneval)
    return run(pathlib.Path(require(OUTPUT)))


def compare(*runs: str) -> None:
    """Compare evaluated runs, the output folders of mode score."""
    output = pathlib.Path(require(OUTPUT))
    check_writable(output)
    print(write_comparison([pathlib.Path(run) for run in runs], output))
    print(f"\n{output / 'index.html'}")


def judge_verifier(*data: str) -> None:
    """Compare a learned verifier with the exact one on data sets of sampled estimates, and print the table."""
    output = pathlib.Path(require(OUTPUT))
    check_writable(output)
    if not data:
        raise EvaluationError("name data that build_data.py estimates wrote: evaluate.py verifier DATA ...")
    judged = verifiers.judge_estimates(load_verifier(require(CHECKPOINT)), [pathlib.Path(one) for one in data])
    made = verifiers.make_verifier_table(judged)
    output.mkdir(parents=True, exist_ok=True)
    write_summary(output, {"checkpoint": CHECKPOINT.value, "data": data}, [made])
    print(tables.format_text(made))


MODES = {
    "score": Mode(score, needs=("benchmark", "output")),
    "verifier": Mode(judge_verifier, ("checkpoint", "output"), needs=("checkpoint", "output"), arguments=True),
    "compare": Mode(compare, ("output",), needs=("output",), arguments=True),
}

if __name__ == "__main__":
    run_modes(MODES, default="score")
