"""Puts evaluated runs side by side: scores, differences to the first one with their intervals, cost against score.

python launch/compare.py out/nano-shapes out/single-pass-shapes --output=out/compared

Each run is an output folder of launch/evaluate.py; all are of one benchmark and the same prompts. OUTPUT gets
index.html, comparison.json and a CSV file for each table.
"""

import collections
import pathlib

from absl import app, flags

from pdgen.command import fail, parse
from pdgen.evaluate.comparison import Run, comparison, evaluations, read_run, scores_of
from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.published import GENEVAL, STRATEGIES, WISE
from pdgen.evaluate.tables import as_csv, as_json, as_text
from pdgen.files import new_file
from pdgen.report.evaluation import Cost, evaluation_page

OUTPUT = flags.DEFINE_string("output", None, "Folder for the page and the tables.", required=True)
PAPER = {"geneval": (GENEVAL, STRATEGIES), "shapes": (GENEVAL, STRATEGIES), "wise": (WISE,)}


def cost(run: Run) -> Cost | None:
    """Cost and total of a run; None where either is unknown."""
    total, spent = list(scores_of(run).values())[-1:], evaluations(run)
    return Cost(run.name, spent, total[0].value, total[0].low, total[0].high) if total and spent else None


def compare(folders: list[str]) -> None:
    """Writes and prints the comparison. Raises EvaluationError, OSError."""
    runs = [read_run(pathlib.Path(folder)) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        raise EvaluationError("two runs have folders of one name; rename one")
    tables = comparison(runs)
    output = pathlib.Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    facts = {run.name: str(run.folder) for run in runs}
    costs = [one for run in runs if (one := cost(run)) is not None]
    found = collections.defaultdict(list)
    for run in runs:
        for line in run.facts["findings"]:
            found[line].append(run.name)
    findings = [f"{', '.join(names)}: {line}" for line, names in found.items()]
    page = evaluation_page(f"{runs[0].benchmark}: {len(runs)} runs", findings, facts, tables,
                           PAPER.get(runs[0].benchmark, ()), costs=costs)  # fmt: skip
    files = {"index.html": page.encode(), "comparison.json": as_json(tables)}
    files |= {f"{table.title.lower()}.csv": as_csv(table).encode() for table in tables}
    for name, content in files.items():
        with new_file(output / name) as partial:
            partial.write_bytes(content)
    print("\n\n".join([*findings, *map(as_text, tables)]))
    print(f"\n{output / 'index.html'}")


def main(argv: list[str]) -> None:
    try:
        compare(argv[1:])
    except (ValueError, OSError) as fault:  # every error class of pdgen is a ValueError
        fail(fault)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
