"""What int8 weights change: logits, velocities and shapes world's scores of a checkpoint and of its int8 form.

    python -m benchmarks.quantized --checkpoint=out/process --output=out/quantized --count=60 --json

The int8 form is made in OUTPUT, or named with ``--int8``. Both models read the same prompts, those of the shapes
benchmark, and see the same noised latents, those of the float model's own way from noise to an image.

- logits: relative error |a - b| / |a| of the centred logits, Kullback-Leibler divergence in nats, and the share of
  tokens whose likeliest successor is the same, by prompt;
- velocity: relative error |a - b| / |a|, by prompt, at four timesteps;
- scores: both models draw the benchmark's images, with intervals and the interval of the difference.

``--no_scores`` leaves the scores out, for a model that was not trained on shapes world.
"""

import dataclasses
import functools
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from msgspec import to_builtins
from tqdm import tqdm

from benchmarks.result import get_cpu_name, get_versions, write_json
from pdgen.checkpoints.conversion import to_pdgen
from pdgen.checkpoints.load import find
from pdgen.checkpoints.pdgen_checkpoint import is_checkpoint, open_checkpoint
from pdgen.evaluate import folder, shapes
from pdgen.evaluate.detectors.exact import load_detector
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.generator import make_generator, parse_assignments, read_recipe
from pdgen.evaluate.geneval import scoring
from pdgen.evaluate.geneval.rule import GenEvalPrompt, GenEvalResult
from pdgen.evaluate.statistics import estimate
from pdgen.flow import denoise
from pdgen.flow.denoise import Contexts, Denoiser, ImageSettings, Progress
from pdgen.flow.rectified import schedule
from pdgen.models import bagel
from pdgen.models.context import Cache, add_text, empty_cache
from pdgen.sample import image
from pdgen.sample.compiled import keep_compiled
from pdgen.sample.model import Model
from pdgen.sample.sampler import Sampler
from pdgen.teachers.advisers import make_exact_advisers

FLAGS = flags.FLAGS
POINTS = 4  # of the schedule


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure; see the flags of the same names."""

    checkpoint: str
    int8: str | None
    output: pathlib.Path
    count: int
    steps: int
    samples: int
    batch: int
    setting: list[str]
    scores: bool


def define_flags() -> None:
    """Define the flags of this benchmark."""
    flags.DEFINE_string("checkpoint", None, "a pdgen checkpoint of floats", required=True)
    flags.DEFINE_string("int8", None, "its int8 form; by default it is made in OUTPUT")
    flags.DEFINE_string("output", "out/quantized", "folder of the int8 checkpoint, the images and their scores")
    flags.DEFINE_integer("count", 10, "largest number of prompts of each task", lower_bound=2)
    flags.DEFINE_integer("steps", 20, "Euler steps of the comparison of velocities", lower_bound=POINTS)
    flags.DEFINE_integer("samples", 1, "images of each prompt for the scores", lower_bound=1)
    flags.DEFINE_integer("batch", 8, "images that are sampled at once", lower_bound=1)
    flags.DEFINE_multi_string("setting", [], "NAME=VALUE of the sampler, as of launch/evaluate.py (repeat it)")
    flags.DEFINE_bool("scores", True, "draw and score the benchmark's images")
    flags.DEFINE_bool("json", False, "write the result under benchmarks/results/")


def read_prompts(model: Model, ids: jax.Array, count: jax.Array) -> tuple[Cache, jax.Array]:
    """Return contexts and logits [B, T, N] of prompts: rows of ``ids`` [B, T], of which ``count`` [B] tokens count."""
    cache = empty_cache(model.config, *ids.shape, dtype=jnp.dtype(model.compute.dtype))

    @jax.jit
    def read(params: dict, cache: Cache) -> tuple[Cache, jax.Array]:
        cache, hidden = add_text(*model.static, params, cache, ids, count)
        return cache, bagel.logits(params, hidden)

    return read(model.params["model"], cache)


def encode_prompts(model: Model, prompts: list[str]) -> tuple[jax.Array, jax.Array]:
    """Return token ids [B, T] with the switch tokens of a text, padded with 0, and how many count."""
    opening, closing = model.text_switches
    rows = [[opening, *model.tokenizer.encode(prompt), closing] for prompt in prompts]
    longest = max(map(len, rows))
    return jnp.asarray([row + [0] * (longest - len(row)) for row in rows]), jnp.asarray([len(row) for row in rows])


def compare_logits(first: jax.Array, second: jax.Array, count: jax.Array) -> dict[str, Any]:
    """Return estimates over prompts of how far ``second`` is from ``first``, both [B, T, N]."""
    valid = np.arange(first.shape[1]) < np.asarray(count)[:, None]
    a, b = (np.asarray(x - x.mean(-1, keepdims=True), np.float64) for x in (first, second))
    log_p, log_q = (np.asarray(jax.nn.log_softmax(x), np.float64) for x in (first, second))
    measures = {
        "relative error": np.linalg.norm(a - b, axis=-1) / np.maximum(np.linalg.norm(a, axis=-1), 1e-30),
        "divergence": (np.exp(log_p) * (log_p - log_q)).sum(-1),
        "same likeliest token": a.argmax(-1) == b.argmax(-1),
    }
    by_prompt = {name: np.mean(values, axis=1, where=valid) for name, values in measures.items()}
    return {name: to_builtins(estimate([values])) for name, values in by_prompt.items()}


def compare_velocities(first: Model, second: Model, contexts: tuple[Cache, Cache], steps: int) -> dict[str, Any]:
    """Return estimates over prompts of the relative error of velocities, by the timestep.

    Both models have their own contexts and the latents of the first model's way to an image, without guidance.
    """
    config = first.config
    settings = ImageSettings(steps + 1, config.timestep_shift, text_scale=1.0)
    side = config.latent_stride * config.max_latent_size
    grid, batch = image.make_grid(config, side, side), contexts[0].length.shape[0]
    positions = image.make_positions(config, grid.latents, config.max_latent_size, batch)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def advance(denoiser: Denoiser, steps: tuple[int, int], params: dict, cache: Cache, progress: Progress) -> Progress:
        seen = Contexts(cache, cache.length, cache.rotary, None, jnp.zeros(batch, bool))
        return denoise.advance(denoiser, params, seen, positions, progress, steps)

    denoisers = [Denoiser(config, model.compute, settings, model.image_switches) for model in (first, second)]
    noise = jax.random.normal(jax.random.key(0), (batch, positions.shape[1], config.latent_dim))
    progress, found = denoise.begin(denoisers[0], noise, image_guidance=False), {}
    t, points = schedule(settings.num_timesteps, settings.timestep_shift), [n * steps // POINTS for n in range(POINTS)]
    for start, end in zip(points, [*points[1:], steps]):
        a, b = (
            np.asarray(advance(denoiser, (start, start + 1), model.params["model"], cache, progress).v, np.float64)
            for denoiser, model, cache in zip(denoisers, (first, second), contexts)
        )
        error = np.linalg.norm((a - b).reshape(batch, -1), axis=1) / np.linalg.norm(a.reshape(batch, -1), axis=1)
        found[f"t={t[start]:.2f}"] = to_builtins(estimate([error]))
        progress = advance(denoisers[0], (start, end), first.params["model"], contexts[0], progress)
    return found


def score(options: Options, checkpoint: str, output: pathlib.Path, prompts: list[GenEvalPrompt]) -> list[GenEvalResult]:
    """Draw and judge the benchmark's images with one checkpoint, or resume that."""
    recipe = read_recipe(checkpoint, "process", {"batch_size": options.batch} | parse_assignments(options.setting))
    jobs = folder.make_geneval_jobs(prompts, options.samples, seed=0)
    folder.begin_generation(output / "images", {"benchmark": "shapes", **recipe.facts()}, jobs)
    with tqdm(total=len(jobs), unit=" images", desc=output.name) as bar:
        generate = make_generator(recipe, make_exact_advisers())
        folder.generate_images(output / "images", output / "trajectories", jobs, generate, options.batch, bar.update)
    folder.write_metadata(output / "images", prompts)
    files = folder.find_samples(output / "images", prompts, options.samples)
    return scoring.score_images(files, prompts, load_detector("shapes"), output)


def compare_scores(options: Options, paths: tuple[str, str], prompts: list[GenEvalPrompt]) -> dict[str, Any]:
    """Return the score of each task and overall: of both checkpoints, and the difference of the second to the first."""
    results = [score(options, path, options.output / name, prompts) for path, name in zip(paths, ("float", "int8"))]
    first, second = (scoring.summarise(scoring.group_by_task(one)) for one in results)
    difference = scoring.compare_results(*results)
    return {
        task: {"float": to_builtins(a), "int8": to_builtins(b), "difference": to_builtins(difference[task])}
        for task, a, b in [
            *((task, first.tasks[task], second.tasks[task]) for task in first.tasks),
            ("overall", first.overall, second.overall),
        ]
    }


def make_int8(options: Options) -> str:
    """Return the int8 form of the checkpoint: the one that --int8 names, or a new one in OUTPUT."""
    if options.int8 is None:
        source, target = find(options.checkpoint), options.output / "checkpoint"
        if not is_checkpoint(source):
            raise EvaluationError(f"--checkpoint={options.checkpoint}: is a step of a run; name the run's export")
        to_pdgen(source, target, int8=True, overwrite=is_checkpoint(target))
        return str(target)
    if not open_checkpoint(options.int8).int8:
        raise EvaluationError(f"--int8={options.int8}: holds floats; convert it with --quantize=int8")
    return options.int8


def measure(options: Options) -> dict[str, Any]:
    """Return everything that is measured. Raises ValueError for invalid input."""
    checkpoint, small = options.checkpoint, make_int8(options)
    prompts = shapes.make_benchmark({task: min(count, options.count) for task, count in shapes.COUNTS.items()})
    models = [Sampler.from_checkpoint(path).model for path in (checkpoint, small)]
    ids, count = encode_prompts(models[0], [prompt.metadata.prompt for prompt in prompts])
    (first, a), (second, b) = (read_prompts(model, ids, count) for model in models)
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)) for model in models]
    result = {
        "bytes": dict(zip(("float", "int8"), sizes)),
        "logits": compare_logits(a, b, count),
        "velocity": compare_velocities(*models, (first, second), options.steps),
    }
    return result | ({"scores": compare_scores(options, (checkpoint, small), prompts)} if options.scores else {})


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    logging.set_verbosity(logging.WARNING)  # Orbax logs each of its steps
    keep_compiled()
    values = {field.name: FLAGS[field.name].value for field in dataclasses.fields(Options)}
    facts = {"cpu": get_cpu_name(), **get_versions("jax", "pdgen"), **values}
    try:
        result = facts | measure(Options(**values | {"output": pathlib.Path(FLAGS.output)}))
    except (ValueError, OSError) as fault:  # every error class of pdgen is a ValueError
        print(f"quantized: {' '.join(str(fault).split())}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(result))
    if FLAGS.json:
        print(write_json("quantized", result))


if __name__ == "__main__":
    define_flags()
    app.run(main)
