"""The stream of documents: shares of subsets, epochs, dropout."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdgen.data.documents import PackingError, make_documents
from pdgen.data.stream import Stream, compute_shares
from pdgen.sequence.segments import NO_DROPOUT, ConditionDropout, dropout_mask, stream_lengths
from tests.data.small_index import shapes_like

SUBSETS = {"multi_turn": range(300), "conflict": range(300, 450), "alignment": range(450, 600)}


@pytest.fixture(scope="module")
def documents():
    return make_documents(shapes_like(600))


def subset_of(number):
    return next(name for name, numbers in SUBSETS.items() if number in numbers)


def test_without_weights_subsets_come_in_proportion():
    assert compute_shares(SUBSETS, {}) == {"multi_turn": 0.5, "conflict": 0.25, "alignment": 0.25}
    assert compute_shares({"": range(7)}, {}) == {"": 1.0}


def test_weights_are_relative_and_zero_leaves_a_subset_out():
    assert compute_shares(SUBSETS, {"multi_turn": 3, "conflict": 1, "alignment": 0}) == {
        "multi_turn": 0.75,
        "conflict": 0.25,
    }


@pytest.mark.parametrize(
    "mixture, message",
    [
        ({"multi_turn": 1, "conflict": 1, "alignment": 1, "genref": 1}, "has no subset 'genref', only 'multi_turn'"),
        ({"multi_turn": 1, "conflict": 1}, "subset 'alignment' has no weight; 0 leaves it out"),
        ({"multi_turn": -1, "conflict": 1, "alignment": 1}, "weight of subset 'multi_turn' is -1, expected at least 0"),
        ({"multi_turn": float("nan"), "conflict": 1, "alignment": 1}, "weight of subset 'multi_turn' is nan"),
        ({"multi_turn": 0, "conflict": 0, "alignment": 0}, "every weight is 0"),
    ],
)
def test_an_unsuitable_mixture_is_refused(mixture, message):
    with pytest.raises(PackingError, match=message):
        compute_shares(SUBSETS, mixture)


def test_a_weighted_subset_without_documents_is_refused():
    with pytest.raises(PackingError, match="subset 'b' has weight 1 but no document; set it to 0"):
        compute_shares({"a": range(3), "b": ()}, {"a": 1, "b": 1})
    assert compute_shares({"a": range(3), "b": ()}, {}) == {"a": 1.0}


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=6), st.integers(0, 10**7))
def test_shares_hold_everywhere_in_the_stream(weights, window):
    """At the end of every window each subset has given its share up to rounding, and the total never falls."""
    numbers = list(itertools.accumulate([10] * len(weights), initial=0))
    subsets = {str(n): range(a, b) for n, (a, b) in enumerate(itertools.pairwise(numbers))}
    made = make_documents(shapes_like(numbers[-1]))
    stream = Stream(made, subsets, dict(zip(subsets, weights)), NO_DROPOUT, 0)
    ordered = sorted(stream.shares.values())
    before, after = (np.array(stream.count_taken(w * stream.window_size)) for w in (window, window + 1))
    assert after.sum() - before.sum() == stream.window_size and (after >= before).all()
    np.testing.assert_allclose(after, np.multiply(ordered, (window + 1) * stream.window_size), atol=len(weights))


def test_a_mixture_of_subsets(documents):
    """Weights 3 : 1 : 0 over ten windows: each subset runs through its own whole epochs, in mixed order."""
    mixture = {"multi_turn": 3.0, "conflict": 1.0, "alignment": 0.0}
    stream = Stream(documents, SUBSETS, mixture, NO_DROPOUT, seed=4)
    windows = [stream.make_window(number) for number in range(10)]
    seen = [(int(e), int(n)) for w in windows for e, n in zip(w.epoch, w.number)]
    assert len(set(seen)) == len(seen) == 6000
    names = [subset_of(number) for _, number in seen]
    assert names.count("multi_turn") == 4500 and names.count("conflict") == 1500
    for name, size in (("multi_turn", 300), ("conflict", 150)):
        own = [(epoch, number) for epoch, number in seen if number in SUBSETS[name]]
        assert set(own) == set(itertools.product(range(len(own) // size), SUBSETS[name]))
    first = [name == "conflict" for name in names[:600]]
    assert 0.15 < np.mean(first[:300]) < 0.35  # the subsets alternate


def test_orders_of_subsets_and_epochs_differ(documents):
    """A subset with a quarter of the weight gives half of its documents per window; the halves differ."""
    subsets, halves = {"a": range(300), "b": range(300, 600)}, []
    for mixture, low in (({"a": 1, "b": 3}, 0), ({"a": 3, "b": 1}, 300)):
        stream = Stream(documents, subsets, mixture, NO_DROPOUT, seed=0)
        for number in (0, 2):  # the first halves of epochs 0 and 1
            window = stream.make_window(number)
            own = window.number[(window.number >= low) & (window.number < low + 300)] - low
            halves.append(set(own.tolist()))
    assert [len(half) for half in halves] == [150] * 4
    for one, two in itertools.combinations(halves, 2):
        assert 50 < len(one & two) < 100


def test_dropout_rates_and_lengths(documents):
    """Over five epochs; lengths are the kept units' tokens."""
    stream = Stream(documents, {"": range(600)}, {}, ConditionDropout(0.1, 0.3, 0.2), seed=0)
    dropped, kinds = [], []
    for number in range(5):
        window = stream.make_window(number)
        for place, document in enumerate(window.number):
            own = slice(documents.starts[document], documents.starts[document + 1])
            keep = window.keep[window.starts[place] : window.starts[place + 1]]
            lengths = stream_lengths(documents.kinds[own], documents.tokens[own])
            np.testing.assert_array_equal(lengths[keep].sum(axis=0), window.lengths[place])
            kinds.append(documents.kinds[own])
            dropped.append(~keep)
    kinds, dropped = np.concatenate(kinds), np.concatenate(dropped)
    shares_dropped = [dropped[kinds == kind].mean() for kind in range(1, 4)]
    np.testing.assert_allclose(shares_dropped, [0, 0.3, 0.2], atol=0.02)


def test_dropout_is_drawn_per_seed_subset_epoch_and_document(documents):
    """The draws of a document are those of its units' places in the subset, whatever else the window holds."""
    dropout = ConditionDropout(0.5, 0.5, 0.5)
    stream = Stream(documents, SUBSETS, {"multi_turn": 1, "conflict": 1, "alignment": 0}, dropout, seed=3)
    window, lengths = stream.make_window(1), np.diff(documents.starts)
    for place in range(0, 600, 7):
        number, epoch = int(window.number[place]), int(window.epoch[place])
        subset = sorted(SUBSETS).index(subset_of(number))
        first = SUBSETS[subset_of(number)].start
        units = lengths[list(SUBSETS[subset_of(number)])].sum()
        draws = np.random.default_rng((3, 2, subset, epoch)).random(units, np.float32)
        own = draws[lengths[first:number].sum() :][: lengths[number]]
        kinds = documents.kinds[documents.starts[number] : documents.starts[number + 1]]
        expected = dropout_mask(kinds, np.array([0, len(kinds)]), dropout, own)
        np.testing.assert_array_equal(window.keep[window.starts[place] : window.starts[place + 1]], expected)


def test_dropout_depends_on_epoch_and_seed(documents):
    def keeps(seed, number):
        window = Stream(documents, {"": range(600)}, {}, ConditionDropout(), seed).make_window(number)
        parts = np.split(window.keep, window.starts[1:-1])
        return {document: parts[place].tolist() for place, document in enumerate(window.number.tolist())}

    assert keeps(0, 0) == keeps(0, 0)
    for other in (keeps(0, 1), keeps(1, 0)):
        first = keeps(0, 0)
        assert np.mean([first[n] == other[n] for n in range(600)]) < 0.5
