"""Pairs of records in packs: both sides side by side, what they share the same, what is no pair refused."""

import dataclasses

import msgspec
import numpy as np
import pytest

from pdgen.assets import shapes_folder
from pdgen.config import SHAPES_NANO
from pdgen.data.documents import PackingError
from pdgen.data.loader import Batches, LoaderConfig
from pdgen.data.records import Origin, RecordSource, write_dataset
from pdgen.sequence.layout import Budgets
from pdgen.sequence.pairs import make_pair
from pdgen.sequence.segments import NO_DROPOUT
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.sequence.trajectory import Image, Text
from tests.data.small_records import image, record

TOKENIZER = load_tokenizer(shapes_folder())
SETTINGS = LoaderConfig(rows=2, budgets=Budgets(700, 160, 448), dropout=NO_DROPOUT, turns="pairs", threads=1)


def pairs(count):
    """Pairs that part after the first picture."""
    made = []
    for number in range(count):
        better = record(number)
        last = next(n for n, segment in enumerate(better.segments) if isinstance(segment, Image)) + 1
        rng = np.random.default_rng(number)
        added = [Text("plan", "<ins>b</ins> <des>a</des>", True), image(rng, "sketch", True)]
        worse = msgspec.structs.replace(better, segments=[*better.segments[:last], *added])
        kept = msgspec.structs.replace(better, segments=better.segments[:last])
        made += make_pair(f"p{number}", kept, worse)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pairs"
    write_dataset(folder, pairs(7), Origin(seed=0), records_per_file=5)  # a pair lies in two files
    return folder


def make_batches(folder, **changes):
    return Batches(SHAPES_NANO, RecordSource(folder), TOKENIZER, dataclasses.replace(SETTINGS, **changes))


def test_both_sides_stand_side_by_side(folder):
    batches = make_batches(folder)
    seen = set()
    for number in range(8):
        for document in batches.packer.choose_documents(number):
            better, worse = batches.list_sides(document)
            assert (better.record % 2, worse.record) == (0, better.record + 1)
            seen.add(better.record)
        layouts, skipped = batches.lay_out_pack(number)
        assert skipped == [] and len(layouts) == 2 * len(batches.packer.choose_documents(number))
    assert seen == {0, 2, 4, 6, 8, 10, 12}


def test_the_common_beginning_has_the_same_latents_and_no_target(folder):
    batches = make_batches(folder)
    for document in batches.packer.choose_documents(0):
        better, worse = (batches.lay_out(side) for side in batches.list_sides(document))
        common = len(better.vae_latents)
        assert common and not better.vae_weights.any()
        np.testing.assert_array_equal(better.vae_latents, worse.vae_latents[:common])
        assert worse.vae_weights.sum() == 16
        # Of the better side only the switch at its end bears a loss.
        assert better.text_weights.sum() == 1 and better.text_weights[-1] == 1


def test_records_that_are_no_pairs_are_refused(folder, tmp_path):
    made = pairs(3)
    for name, records in (("odd", made[:5]), ("swapped", [made[1], made[0]])):
        write_dataset(tmp_path / name, records, Origin(seed=0))
        with pytest.raises(PackingError, match="are no pair; make the data with") as fault:
            make_batches(tmp_path / name)
        assert "\n" not in str(fault.value)


def test_a_pair_with_a_broken_side_is_left_out(tmp_path):
    made = pairs(3)
    none = {"latent_mean": None, "latent_logvar": None, "latent_shape": None}
    segments = [msgspec.structs.replace(s, **none) if isinstance(s, Image) else s for s in made[3].segments]
    made[3] = msgspec.structs.replace(made[3], segments=segments)
    write_dataset(tmp_path / "set", made, Origin(seed=0))
    batches = make_batches(tmp_path / "set", broken="skip")
    assert batches.documents.record.tolist() == [0, 4]
