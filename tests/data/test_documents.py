"""Records to documents: single turns, cuts, refusals."""

import numpy as np
import pytest

from pdgen.data.documents import PackingError, make_documents
from pdgen.data.lengths import CountedRecord, make_index
from pdgen.sequence.layout import Budgets
from pdgen.sequence.segments import CLEAN, NOISED, TEXT, VIT, Outline, Unit

IMAGE = [Unit(NOISED, 64), Unit(CLEAN, 64), Unit(VIT, 16)]
# Prompt and plan, image; a draft that is context with its plan, its inspection and refinement; a last inspection.
STEPS = [Unit(TEXT, 5), Unit(TEXT, 7), *IMAGE, Unit(TEXT, 9), *IMAGE[1:], Unit(TEXT, 11), *IMAGE, Unit(TEXT, 3)]
TURNS = [(0, 5), (5, 6), (8, 13)]  # the second turn teaches its plan alone, so its draft is not needed
SHORT = [Unit(TEXT, 4), *IMAGE]


@pytest.fixture
def index():
    records = [
        CountedRecord("long", Outline(STEPS, TURNS)),
        CountedRecord("", None, "part-00000.array_record: record 1: broken"),
        CountedRecord("short", Outline(SHORT, [(0, 4)])),
    ]
    return make_index(records)


def units(documents, number):
    own = slice(documents.starts[number], documents.starts[number + 1])
    return list(zip(documents.kinds[own].tolist(), documents.tokens[own].tolist()))


def teaches(documents):
    return list(zip(documents.record.tolist(), documents.first.tolist(), documents.stop.tolist()))


def test_whole_records_without_the_broken_one(index):
    documents = make_documents(index)
    assert teaches(documents) == [(0, 0, 3), (2, 0, 1)]
    assert units(documents, 0) == STEPS and units(documents, 1) == SHORT
    text = 5 + 7 + 9 + 11 + 3 + 5 * 2 + 8 * 2  # words, and two switches for each of 13 units
    np.testing.assert_array_equal(documents.count_tokens(), [[text, 3 * 16, 5 * 64], [4 + 8, 16, 128]])


def test_single_turns_see_earlier_turns_without_noised_copies(index):
    documents = make_documents(index, turns="single")
    assert teaches(documents) == [(0, 0, 1), (0, 1, 2), (0, 2, 3), (2, 0, 1)]
    assert units(documents, 0) == STEPS[:5]
    assert units(documents, 1) == [*STEPS[:2], *IMAGE[1:], STEPS[5]]
    assert units(documents, 2) == [*STEPS[:2], *IMAGE[1:], *STEPS[5:13]]


def test_a_turn_that_teaches_nothing_is_no_document():
    index = make_index([CountedRecord("a", Outline(STEPS, [(0, 5), (0, 0), (8, 13)]))])
    assert teaches(make_documents(index, turns="single")) == [(0, 0, 1), (0, 2, 3)]


def test_a_long_record_is_refused_with_its_id(index):
    with pytest.raises(PackingError) as caught:
        make_documents(index, Budgets(200, 40, 400))
    message = str(caught.value)
    assert message.startswith("record long needs text 61, vit 48, vae 320 tokens, a pack holds text 200, vit 40, ")
    assert "1 of 2 documents are too long; budgets of text 61, vit 48, vae 320 hold every one" in message
    assert make_documents(index, Budgets(61, 48, 320)).cut.size == 0


@pytest.mark.parametrize("vae, stop, end", [(319, 2, 6), (128, 2, 6)])
def test_a_long_record_is_cut_after_the_last_turn_that_fits(index, vae, stop, end):
    documents = make_documents(index, Budgets(61, 48, vae), too_long="cut")
    assert teaches(documents) == [(0, 0, stop), (2, 0, 1)]
    assert units(documents, 0) == STEPS[:end]
    np.testing.assert_array_equal(documents.cut, [0])


def test_a_cut_that_teaches_nothing_is_no_document():
    silent = CountedRecord("a", Outline(STEPS, [(0, 0), (5, 6), (8, 13)]))
    index = make_index([silent, CountedRecord("b", Outline(SHORT, [(0, 4)]))])
    assert teaches(make_documents(index, Budgets(61, 48, 200), too_long="cut")) == [(0, 0, 2), (1, 0, 1)]
    with pytest.raises(PackingError, match=r"record a needs .* no turn of it fits"):
        make_documents(index, Budgets(13, 48, 200), too_long="cut")


def test_turns_that_do_not_fit_are_cut(index):
    documents = make_documents(index, Budgets(61, 32, 256), turns="single", too_long="cut")
    assert teaches(documents) == [(0, 0, 1), (0, 1, 2), (2, 0, 1)]
    np.testing.assert_array_equal(documents.cut, [0])


@pytest.mark.parametrize("turns", ["whole", "single"])
def test_a_first_turn_that_does_not_fit_is_refused_even_so(index, turns):
    with pytest.raises(PackingError, match=r"record long needs .* no turn of it fits, so it cannot be cut"):
        make_documents(index, Budgets(13, 48, 127), turns=turns, too_long="cut")


def test_a_data_set_of_broken_records_is_refused():
    with pytest.raises(PackingError, match="holds no document"):
        make_documents(make_index([CountedRecord("", None, "broken")]))
