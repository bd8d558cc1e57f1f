"""Importers of other data sets: one function per format, which yields records and skipped samples.

Texts of the data sets are targets. Texts that an importer adds are context.
"""

import pathlib
from collections.abc import Callable, Iterator

from pdgen.data.records import Dataset, Origin, is_dataset, write_files, write_index
from pdgen.files import new_folder
from pdgen.synthesis.importers import bagel, folder, preferences, reasoning, reflection
from pdgen.synthesis.importers.outcome import ImporterError, Outcome, Tally

FORMATS: dict[str, Callable[[pathlib.Path], Iterator[Outcome]]] = {
    bagel.TEXT_TO_IMAGE: bagel.read_text_to_image,
    bagel.EDITING: bagel.read_editing,
    reasoning.ZEBRA: reasoning.read_zebra_cot,
    reasoning.THINKMORPH: reasoning.read_thinkmorph,
    reflection.UNICOT: reflection.read_unicot,
    reflection.GENREF: reflection.read_genref,
    folder.FOLDER: folder.read_folder,
    preferences.PREFERENCES: preferences.read_preferences,
}


def import_dataset(
    name: str, source: pathlib.Path, target: pathlib.Path, *, records_per_file: int = 1000, overwrite: bool = False
) -> tuple[Dataset, Tally]:
    """Write the records of another data set to the folder ``target``, atomically.

    The only subset is called ``name``, a key of ``FORMATS``. ``source`` is a file of that format or a folder of files.
    The facts in ``dataset.json`` list skipped samples and the reasons.

    Raises:
      FolderError: the target cannot be written.
      ImporterError: a file has another format, or no sample became a record.
    """
    tally = Tally()
    with new_folder(target, kind="data set", replaceable=is_dataset, overwrite=overwrite) as partial:
        records = tally.filter_records(FORMATS[name](source))
        files = write_files(partial, records, subset=name, records_per_file=records_per_file)
        if not files:
            raise ImporterError(f"{source}: no sample became a record; skipped: {dict(tally.skipped) or 'none'}")
        dataset = Dataset(files=files, origin=Origin(seed=0, settings={"format": name}), facts=tally.to_dict())
        write_index(partial, dataset)
    return dataset, tally
