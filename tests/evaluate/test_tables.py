"""Tables for readers and for programs."""

import csv
import io

from pdgen.evaluate.tables import Table, fold_intervals, format_csv, format_markdown, format_text

TWO_RUNS = Table(
    "Scores",
    ("score", "low", "low low", "low high", "other", "other low", "other high", "prompts"),
    [("colors", 0.5, 0.25, 0.75, 1.0, None, None, 4), ("position", None, None, None, 0.0, 0.0, 0.125, 4)],
)


def test_an_interval_joins_its_value_even_for_a_run_named_low():
    columns, rows = fold_intervals(TWO_RUNS, str)
    assert columns == ["score", "low", "other", "prompts"]
    assert rows == [
        ["colors", "0.5 [0.25, 0.75]", "1.0", "4"],
        ["position", "None", "0.0 [0.0, 0.125]", "4"],
    ]


def test_columns_without_an_interval_stay():
    table = Table("Costs", ("what", "a", "low", "prompts"), [("seconds", 1.0, 2.0, 3)])
    assert fold_intervals(table, str) == (["what", "a", "low", "prompts"], [["seconds", "1.0", "2.0", "3"]])


def test_columns_are_aligned_in_the_terminal():
    lines = format_text(TWO_RUNS).splitlines()[1:]
    assert len({len(line) for line in lines}) == 1
    assert lines[1].endswith("4") and "0.5000 [0.2500, 0.7500]" in lines[1]
    assert "-" in lines[2] and "0.0000 [0.0000, 0.1250]" in lines[2]


def test_csv_has_a_column_for_every_number():
    header, first, second = csv.reader(io.StringIO(format_csv(TWO_RUNS)))
    assert tuple(header) == TWO_RUNS.columns
    assert first[1:4] == ["0.5", "0.25", "0.75"] and second[1:4] == ["", "", ""]


def test_markdown_has_short_numbers():
    table = Table(
        "Costs",
        ("what", "value", "low", "high", "paper", "prompts"),
        [("a", 0.376, 0.25, 0.5, None, 4), ("b", 1234.5, None, None, 0.8, 4)],
    )
    assert format_markdown(table).splitlines() == [
        "| what | value | paper | prompts |",
        "| --- | --- | --- | --- |",
        "| a | 0.38 [0.25, 0.50] |  | 4 |",
        "| b | 1,234 | 0.80 | 4 |",
    ]
