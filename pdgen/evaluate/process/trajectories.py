"""Measures the trajectories that an evaluation has drawn: what they cost, and what each of their stages is worth."""

import dataclasses
import pathlib
from collections.abc import Sequence

import msgspec
from tqdm import tqdm

from pdgen.evaluate.geneval import Prompt
from pdgen.evaluate.process.measures import ProcessFacts, process_facts, shapes_untouched
from pdgen.evaluate.process.tables import cost_table, trajectory_folders
from pdgen.evaluate.tables import Table
from pdgen.files import new_file
from pdgen.sequence.trajectory_folder import load_trajectory
from pdgen.teachers.advisers import make_exact_advisers
from pdgen.teachers.exact.judge import ExactJudge

TRAJECTORIES = "trajectories"  # the folder of an evaluation that holds them
_FACTS = "process.jsonl"


def cost_tables(output: pathlib.Path) -> list[Table]:
    """The costs of an evaluation's trajectories as one table, or none where it has drawn nothing."""
    folders = trajectory_folders(output / TRAJECTORIES)
    # Thousands of them, of large pictures, would not fit into the memory.
    drawn = [dataclasses.replace(load_trajectory(path), images=(), latents=None) for path in folders]
    return [cost_table(drawn)] if drawn else []


def judge_trajectories(output: pathlib.Path, prompts: Sequence[Prompt]) -> list[ProcessFacts]:
    """Judges the stages of all trajectories of shapes world, and writes the facts to ``process.jsonl``.

    Args:
      output: The folder of the evaluation.
      prompts: What was asked for.

    Raises:
      TrajectoryError: A trajectory cannot be read.
      OSError: The file cannot be written.
    """
    things = {prompt.metadata.prompt: len(prompt.metadata.include) for prompt in prompts}
    judge, verifier = ExactJudge(), make_exact_advisers().verifier
    facts = []
    for path in tqdm(trajectory_folders(output / TRAJECTORIES), unit=" trajectories", desc="judging"):
        one = load_trajectory(path)
        facts.append(process_facts(one, judge, verifier, shapes_untouched, things.get(one.prompt, 0)))
    with new_file(output / _FACTS) as partial:
        partial.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in facts))
    return facts
