"""Costs and process measures of the trajectories of an evaluation."""

import dataclasses
import pathlib
from collections.abc import Sequence

import msgspec

from pdgen.evaluate.geneval.rule import GenEvalPrompt
from pdgen.evaluate.process.measures import ProcessFacts, check_shapes_untouched, judge_trajectory
from pdgen.evaluate.process.tables import find_trajectories, make_cost_table
from pdgen.evaluate.tables import Table
from pdgen.files import new_file
from pdgen.progress_bar import ProgressBar
from pdgen.sequence.trajectory_folder import load_trajectory
from pdgen.teachers.advisers import make_exact_advisers
from pdgen.teachers.exact.judge import ExactJudge

TRAJECTORIES = "trajectories"  # their folder in an evaluation's folder
_FACTS = "process.jsonl"


def make_cost_tables(output: pathlib.Path) -> list[Table]:
    """Return the costs of an evaluation's trajectories as one table, or no table without trajectories."""
    folders = find_trajectories(output / TRAJECTORIES)
    # Without pictures, which would not fit into the memory for thousands of trajectories.
    drawn = [dataclasses.replace(load_trajectory(path), images=(), latents=None) for path in folders]
    return [make_cost_table(drawn)] if drawn else []


def judge_trajectories(output: pathlib.Path, prompts: Sequence[GenEvalPrompt]) -> list[ProcessFacts]:
    """Judge the stages of all trajectories of shapes world, and write the facts to ``process.jsonl``.

    Args:
      output: The folder of the evaluation.
      prompts: The benchmark's prompts.

    Raises:
      TrajectoryError: A trajectory cannot be read.
      OSError: The file cannot be written.
    """
    entities = {prompt.metadata.prompt: len(prompt.metadata.include) for prompt in prompts}
    judge, verifier = ExactJudge(), make_exact_advisers().verifier
    facts = []
    for path in ProgressBar(find_trajectories(output / TRAJECTORIES), unit=" trajectories", desc="judging"):
        one = load_trajectory(path)
        facts.append(judge_trajectory(one, judge, verifier, check_shapes_untouched, entities.get(one.prompt, 0)))
    with new_file(output / _FACTS) as partial:
        partial.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in facts))
    return facts
