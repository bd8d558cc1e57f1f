"""Parses the prompts of a GenEval metadata file and compares each graph with its metadata.

python launch/parse_prompts.py --metadata=evaluation_metadata.jsonl

Exit status: 0 where all agree, 1 where some do not, 2 for a file that cannot be read.
"""

import pathlib
import sys

from absl import app, flags

from pdgen.cli import fail, parse
from pdgen.evaluate.metadata import Metadata, agrees, decode_metadata
from pdgen.shapes.graph import SceneError
from pdgen.shapes.parse import parse as parse_prompt

METADATA = flags.DEFINE_string("metadata", None, "GenEval's evaluation_metadata.jsonl.", required=True)


def read(path: pathlib.Path) -> list[Metadata]:
    """The file's records.

    Raises:
      SceneError: a line is no record; the message names its number.
      OSError, UnicodeDecodeError: the file cannot be read.
    """
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(decode_metadata(line))
        except SceneError as fault:
            raise SceneError(f"{path}: line {number}: {fault}") from None
    if not records:
        raise SceneError(f"{path}: holds no records; copy GenEval's evaluation_metadata.jsonl")
    return records


def faults(record: Metadata) -> list[str]:
    """In what the prompt's graph and the metadata differ, or why the prompt has no graph."""
    try:
        return [f"{record.prompt!r}: {found}" for found in agrees(parse_prompt(record.prompt), record)]
    except SceneError as fault:
        return [str(fault)]


def main(argv: list[str]) -> None:
    if argv[1:]:
        fail(f"{argv[1]} is no flag; write --flag=value")
    try:
        records = read(pathlib.Path(METADATA.value))
    except (SceneError, OSError, UnicodeDecodeError) as fault:
        fail(fault)
    agreeing = 0
    for number, record in enumerate(records, 1):
        found = faults(record)
        agreeing += not found
        for fault in found:
            print(f"line {number}: {fault}")
    print(f"{agreeing} of {len(records)} prompts agree with their metadata")
    sys.exit(0 if agreeing == len(records) else 1)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
