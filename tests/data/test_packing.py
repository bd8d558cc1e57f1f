import copy
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdgen.data import packing
from pdgen.data.lengths import make_index
from pdgen.data.packing import Packer, PackingError, balanced_budgets, mean_lengths
from pdgen.interleave.layout import Budgets
from pdgen.interleave.segments import CLEAN, NO_DROPOUT, NOISED, TEXT, VIT, ConditionDropout, Unit

DROPOUT = ConditionDropout(0.1, 0.3, 0.3)


def shapes_like(count, seed=0):
    """Units as shapes world makes them: up to three steps, 64 VAE and 16 ViT tokens an image."""
    rng = np.random.default_rng(seed)

    def units():
        made = [Unit(TEXT, int(rng.integers(10, 25)))]
        for _ in range(rng.choice([1, 2, 3], p=[0.3, 0.45, 0.25])):
            made.append(Unit(TEXT, int(rng.integers(25, 60))))
            for noised in [False, True] if rng.random() < 0.3 else [True]:
                made += [Unit(NOISED, 64)] * noised + [Unit(CLEAN, 64), Unit(VIT, 16)]
                made.append(Unit(TEXT, int(rng.integers(15, 50))))
        return made

    return make_index((f"r{n}", units()) for n in range(count))


@pytest.fixture(scope="module")
def index():
    return shapes_like(700)


@pytest.mark.parametrize("dropout", [NO_DROPOUT, DROPOUT], ids=["whole", "dropout"])
def test_streams_are_filled(index, dropout):
    """Measured 0.970 or more in every stream."""
    budgets = balanced_budgets(index, dropout, 4096)
    fill = Packer(index, budgets, dropout, seed=0).fill(range(150))
    assert min(fill.values()) >= 0.95, fill
    assert max(fill.values()) <= 1


def test_the_binding_stream_is_filled(index):
    """Budgets out of proportion: text alone binds."""
    budgets = dataclasses.replace(balanced_budgets(index, DROPOUT, 4096), vit=4000, vae=8000)
    fill = Packer(index, budgets, DROPOUT, seed=0).fill(range(150))
    assert fill["text"] >= 0.98 and fill["vae"] < 0.5


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), min_size=1, max_size=6), min_size=1),
    st.integers(0, 9),
)
def test_no_document_is_lost_or_doubled(records, seed):
    """Every document that was drawn is packed once or still waits in the pool."""
    records = make_index((f"r{n}", [Unit(*unit) for unit in units]) for n, units in enumerate(records))
    budgets = Budgets(*(int(most) + 3 for most in records.totals().max(axis=0)))
    packer = Packer(records, budgets, DROPOUT, seed)
    seen = []
    for number in range(20):
        documents = packer.documents(number)
        seen += documents
        lengths = np.sum([packer.lengths(document) for document in documents], axis=0)
        assert np.all(lengths <= [budgets.text, budgets.vit, budgets.vae])
    assert len(set(seen)) == len(seen)
    epochs = (len(seen) - len(documents) + packing.POOL) // len(records)  # drawn to their last record
    expected = {(epoch, record) for epoch in range(epochs) for record in range(len(records))}
    assert len(expected - set(seen)) <= packing.POOL
    assert all(epoch <= epochs for epoch, _ in seen)


def test_every_epoch_brings_every_record_once_and_in_its_own_order(index):
    packer = Packer(index, balanced_budgets(index, DROPOUT, 4096), DROPOUT, seed=0)
    documents = [document for number in range(330) for document in packer.documents(number)]
    # What is packed is at most two pools behind what was drawn, so the first two epochs are complete.
    assert len(documents) > 2 * len(index) + 2 * packing.POOL
    epochs = [[d.record for d in documents if d.epoch == epoch] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(len(index)))
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])


def test_epochs_are_shuffled_apart():
    """Packs of one document each show the stream of documents itself."""
    equal = make_index((f"r{n}", [Unit(TEXT, 8)]) for n in range(40))
    packer = Packer(equal, Budgets(10, 0, 0), NO_DROPOUT, seed=0)
    documents = [packer.documents(number) for number in range(80)]
    assert all(len(pack) == 1 for pack in documents)
    first, second = ([pack[0].record for pack in documents[n : n + 40]] for n in (0, 40))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second and list(range(40)) not in (first, second)


def test_small_documents_do_not_wait():
    """A quarter of the documents is tiny; a greedy by size alone would leave them to the end."""
    rng = np.random.default_rng(0)
    units = [
        [Unit(TEXT, 8)] if rng.random() < 0.25 else [Unit(TEXT, int(rng.integers(50, 200))), Unit(NOISED, 64)]
        for _ in range(300)
    ]
    mixed = make_index((f"r{n}", own) for n, own in enumerate(units))
    packer = Packer(mixed, Budgets(1500, 0, 640), NO_DROPOUT, seed=0)
    documents = [document for number in range(130) for document in packer.documents(number)]
    assert len(documents) > len(mixed) + 2 * packing.POOL
    last = max(n for n, document in enumerate(documents) if document.epoch == 0)
    assert last < len(mixed) + 2 * packing.POOL


def test_a_pack_is_a_function_of_settings_seed_and_number(index):
    budgets = balanced_budgets(index, DROPOUT, 4096)
    forwards = Packer(index, budgets, DROPOUT, seed=1)
    expected = [forwards.documents(number) for number in range(30)]
    backwards = Packer(index, budgets, DROPOUT, seed=1)
    assert [backwards.documents(number) for number in reversed(range(30))] == expected[::-1]
    copied = copy.deepcopy(Packer(index, budgets, DROPOUT, seed=1))  # as worker processes receive it
    assert copied.documents(29) == expected[29]
    assert Packer(index, budgets, DROPOUT, seed=2).documents(0) != expected[0]


def test_a_long_document_is_refused_with_its_id(index):
    most = index.totals().max(axis=0)
    longest = index.ids[np.argmax(index.totals()[:, 2] == most[2])]
    budgets = Budgets(int(most[0]), int(most[1]), int(most[2]) - 1)
    with pytest.raises(PackingError) as caught:
        Packer(index, budgets, NO_DROPOUT, seed=0)
    message = str(caught.value)
    assert message.startswith(f"record {longest} needs text ")
    assert f"budgets of text {most[0]}, vit {most[1]}, vae {most[2]} hold every record" in message
    Packer(index, Budgets(*map(int, most)), NO_DROPOUT, seed=0).documents(0)


def test_mean_lengths_are_those_of_packed_documents(index):
    dropout = ConditionDropout(0.5, 0.3, 0.4)
    packer = Packer(index, balanced_budgets(index, dropout, 4096), dropout, seed=0)
    documents = [packing.Document(epoch, record) for epoch in range(4) for record in range(len(index))]
    measured = np.mean([packer.lengths(document) for document in documents], axis=0)
    np.testing.assert_allclose(mean_lengths(index, dropout), measured, rtol=0.02)
    np.testing.assert_allclose(mean_lengths(index, NO_DROPOUT), index.totals().mean(axis=0))


def test_budgets_follow_the_data(index):
    budgets = balanced_budgets(index, NO_DROPOUT, 4096)
    assert 4096 - 64 - 16 - 16 < budgets.total <= 4096
    assert (budgets.vae % 64, budgets.vit % 16) == (0, 0)  # whole images
    mean = index.totals().mean(axis=0)
    documents = np.array([budgets.text, budgets.vit, budgets.vae]) / mean
    assert documents.max() - documents.min() < 64 / mean.min()
    with pytest.raises(PackingError, match=r"record r\d+ needs"):
        balanced_budgets(index, NO_DROPOUT, 512)


def test_totals_of_the_index():
    two = make_index([("a", [Unit(TEXT, 3), Unit(NOISED, 64)]), ("b", [Unit(VIT, 16)])])
    np.testing.assert_array_equal(two.totals(), [[7, 0, 64], [2, 16, 0]])
    assert two.ids.tolist() == ["a", "b"]
