"""Puts evaluated runs side by side: scores, differences to the first one with their intervals, cost against score.

python launch/compare.py out/scores out/single-pass-scores --output=out/compared

Each run is an output folder of launch/evaluate.py; all are of one benchmark and the same prompts. Runs whose folders
have one name are told apart by more of their paths. OUTPUT gets index.html, comparison.json and a CSV file for each
table.
"""

import collections
import pathlib

from absl import app, flags

from pdgen.cli import fail, parse
from pdgen.evaluate.comparison import TOTAL, Run, comparison, evaluations, judged_differently, read_runs, scores_of
from pdgen.evaluate.page import Cost, evaluation_page
from pdgen.evaluate.published import GENEVAL, STRATEGIES, WISE
from pdgen.evaluate.tables import as_csv, as_json, as_text
from pdgen.files import new_file

OUTPUT = flags.DEFINE_string("output", None, "Folder for the page and the tables.", required=True)
PAPER = {"geneval": (GENEVAL, STRATEGIES), "shapes": (GENEVAL, STRATEGIES), "wise": (WISE,)}


def costs(runs: list[Run]) -> list[Cost]:
    """Cost and total of every run whose cost is known; of WISE the last scoring of which all runs have a total."""
    own = [scores_of(run) for run in runs]
    totals = [name for name in own[0] if name.endswith(TOTAL) and all(scores[name] is not None for scores in own)]
    if not totals:
        return []
    found = []
    for run, scores in zip(runs, own):
        if spent := evaluations(run):
            total = scores[totals[-1]]
            assert total is not None  # of all runs, see above
            name = run.name if totals[-1] == TOTAL else f"{run.name}, {totals[-1]}"
            found.append(Cost(name, spent, total.value, total.low, total.high))
    return found


def compare(folders: list[str]) -> None:
    """Writes and prints the comparison. Raises EvaluationError, OSError."""
    runs = read_runs([pathlib.Path(folder) for folder in folders])
    tables, benchmark = comparison(runs), runs[0].facts.benchmark
    output = pathlib.Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    facts = {run.name: str(run.folder) for run in runs}
    found = collections.defaultdict(list)
    for run in runs:
        for line in run.facts.findings:
            found[line].append(run.name)
    findings = [*judged_differently(runs), *(f"{', '.join(names)}: {line}" for line, names in found.items())]
    page = evaluation_page(f"{benchmark}: {len(runs)} runs", findings, facts, tables,
                           PAPER[benchmark], costs=costs(runs))  # fmt: skip
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
