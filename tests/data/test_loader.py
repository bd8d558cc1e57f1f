"""The loader on a small data set with made-up latents."""

import collections
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import msgspec
import numpy as np
import pytest
from absl import flags

from pdgen.assets import shapes_folder
from pdgen.config import SHAPES_NANO
from pdgen.data import lengths
from pdgen.data.documents import PackingError
from pdgen.data.loader import Batches, LoaderConfig, LoaderError, make_loader
from pdgen.data.packing import Document, make_document_rng
from pdgen.data.records import Origin, RecordError, RecordSource, write_dataset
from pdgen.sequence.layout import Budgets, pack_shapes
from pdgen.sequence.segments import NO_DROPOUT, ConditionDropout, loss_targets
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.sequence.trajectory import Image
from tests.data.small_records import records

TOKENIZER = load_tokenizer(shapes_folder())
SETTINGS = LoaderConfig(
    rows=4, budgets=Budgets(576, 160, 448), seed=5, dropout=ConditionDropout(0.1, 0.1, 0.1), threads=2
)
RECORDS = 23


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_dataset(folder, records(RECORDS), Origin(seed=0), records_per_file=10)
    return folder


@pytest.fixture(scope="module")
def batches(folder) -> Batches:
    return Batches(SHAPES_NANO, RecordSource(folder), TOKENIZER, SETTINGS)


def assert_equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_batches_have_the_stated_shapes(batches):
    batch = batches[3].pack
    shapes = jax.tree.map(lambda array: (array.shape, array.dtype), batch)
    stated = pack_shapes(SETTINGS.budgets, SHAPES_NANO, rows=4)
    assert shapes == jax.tree.map(lambda struct: (struct.shape, struct.dtype), stated)
    np.testing.assert_array_equal(batch.row, [12, 13, 14, 15])


def test_the_step_number_is_the_whole_state(folder, batches):
    """Starting at step 2 gives the batches that a run from step 0 and random access give."""
    source = RecordSource(folder)
    whole = list(make_loader(SHAPES_NANO, source, TOKENIZER, SETTINGS, stop_step=4))
    resumed = list(make_loader(SHAPES_NANO, source, TOKENIZER, SETTINGS, start_step=2, stop_step=4))
    assert len(whole) == 4 and len(resumed) == 2
    for step, batch in enumerate(whole):
        assert_equal(batch, batches[step].pack)
    for step, batch in enumerate(resumed, 2):
        assert_equal(batch, whole[step])
    assert not np.array_equal(whole[0].text_ids, whole[1].text_ids)


def test_draws_are_noised_copies_of_every_drawn_image(folder):
    """The packs have room for them, and each has its own number, which selects its noise and timestep."""
    source = RecordSource(folder)
    once, thrice = (
        Batches(SHAPES_NANO, source, TOKENIZER, dataclasses.replace(SETTINGS, dropout=NO_DROPOUT, draws=draws))
        for draws in (1, 3)
    )
    assert len(list(folder.glob("lengths-*.npz"))) >= 2  # each number of draws has its own lengths
    for number in range(RECORDS):
        single, several = (b.lay_out(whole_document(b.documents, number)) for b in (once, thrice))
        drawn = sum(s.target for s in source[number].segments if isinstance(s, Image))
        assert several.vae_weights.sum() == 3 * single.vae_weights.sum() == 3 * 16 * drawn
        targets = [made.text_targets[made.text_weights > 0].tolist() for made in (single, several)]
        assert targets[0] == targets[1]
    for number in range(4):
        pack, documents = thrice.make_pack(number), thrice.packer.choose_documents(number)
        images = [s for d in documents for s in source[d.record].segments if isinstance(s, Image) and s.target]
        assert np.bincount(pack.vae_image[pack.vae_image >= 0]).tolist() == [16] * 3 * len(images)
        assert thrice.packer.count_used(number)[2] == sum(pack.vae_latents.any(1))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_rows(folder, batches, count):
    source = RecordSource(folder)
    parts = [Batches(SHAPES_NANO, source, TOKENIZER, SETTINGS, (index, count))[1].pack for index in range(count)]
    assert_equal(jax.tree.map(lambda *rows: np.concatenate(rows), *parts), batches[1].pack)
    with pytest.raises(LoaderError, match="4 rows cannot be shared equally by 3 processes"):
        Batches(SHAPES_NANO, source, TOKENIZER, SETTINGS, (0, 3))


@pytest.mark.slow
@pytest.mark.parametrize("turns", ["whole", "single"])
def test_every_text_of_the_records_is_in_the_packs(folder, turns):
    """Without dropout, the documents' texts come back from the packs; each epoch has each document once."""
    settings = dataclasses.replace(SETTINGS, dropout=NO_DROPOUT, turns=turns)
    source = RecordSource(folder)
    whole = Batches(SHAPES_NANO, source, TOKENIZER, settings)
    seen = []
    for number in range(100 if turns == "whole" else 150):
        pack, documents = whole.make_pack(number), whole.packer.choose_documents(number)
        start = 0
        for document in documents:
            length = whole.packer.count_tokens(document)[0]
            texts = loss_targets(source[document.record], TOKENIZER, *document.turns)[0]
            expected = [s.text for s in source[document.record].segments[: len(texts)] if not isinstance(s, Image)]
            assert TOKENIZER.decode(pack.text_ids[start : start + length].tolist()) == "".join(expected)
            start += length
        seen += [(document.epoch, document.number) for document in documents]
        assert not pack.text_ids[start:].any()
    assert len(set(seen)) == len(seen)
    window = whole.packer.stream.window_size
    assert len(seen) >= window, "the first window is not whole"
    epochs = window // len(whole.documents)
    expected = {(epoch, number) for epoch in range(epochs) for number in range(len(whole.documents))}
    assert expected <= set(seen)


def test_single_turns_teach_what_whole_records_teach(folder):
    """Every target appears once with its weight, however the records are cut into documents."""

    def targets(turns):
        batches = Batches(SHAPES_NANO, RecordSource(folder), TOKENIZER, dataclasses.replace(SETTINGS, turns=turns))
        words, images = collections.Counter(), 0
        for number in range(len(batches.documents)):
            laid_out = batches.lay_out(whole_document(batches.documents, number))
            at = laid_out.text_weights > 0
            words.update(zip(laid_out.text_ids[at].tolist(), laid_out.text_targets[at].tolist()))
            images += laid_out.vae_weights.sum()
        return words, images, len(batches.documents)

    words, images, count = targets("whole")
    single_words, single_images, single_count = targets("single")
    assert single_count > count == RECORDS
    assert (single_words, single_images) == (words, images)


def whole_document(documents, number):
    """Return the document of a whole record, with nothing dropped."""
    return Document(
        epoch=0,
        number=number,
        record=int(documents.record[number]),
        turns=(int(documents.first[number]), int(documents.stop[number])),
        keep=(True,) * int(np.diff(documents.starts)[number]),
    )


def test_long_records_are_cut_if_the_config_says_so(folder):
    """A cut document ends with an image, or with a plan whose faulty draft is not needed, and teaches no end."""
    source, tight = RecordSource(folder), dataclasses.replace(SETTINGS, budgets=Budgets(576, 48, 448))
    with pytest.raises(PackingError, match=r"record r-0-\d+ needs text \d+, vit 64"):
        Batches(SHAPES_NANO, source, TOKENIZER, tight)
    made = Batches(SHAPES_NANO, source, TOKENIZER, dataclasses.replace(tight, too_long="cut"))
    expected = [n for n in range(RECORDS) if sum(isinstance(s, Image) for s in source[n].segments) > 3]
    assert made.documents.cut.tolist() == expected
    for number in range(RECORDS):
        laid_out = made.lay_out(whole_document(made.documents, number))
        assert (laid_out.text_targets[-1] == TOKENIZER.im_end) == (number not in expected)
        if number in expected:
            last = laid_out.text_ids[-1], laid_out.text_targets[-1]
            assert last in ((TOKENIZER.vision_end, 0), (TOKENIZER.im_end, TOKENIZER.vision_start))
            assert 16 <= laid_out.lengths[1] <= 48


def test_every_epoch_draws_new_latents_and_dropout(batches):
    documents = [document for number in range(100) for document in batches.packer.choose_documents(number)]
    same = sorted((d for d in documents if d.number == 3), key=lambda d: d.epoch)
    assert len({d.keep for d in same}) > 1
    one, two = (batches.lay_out(d._replace(keep=(True,) * len(d.keep))) for d in same[:2])
    again = batches.lay_out(same[0]._replace(keep=(True,) * len(same[0].keep)))
    np.testing.assert_array_equal(one.vae_latents, again.vae_latents)
    assert not np.array_equal(one.vae_latents[:64], two.vae_latents[:64])
    assert make_document_rng(5, same[0]).random() != make_document_rng(6, same[0]).random()


def test_workers_give_the_same_batches(folder, batches):
    if not flags.FLAGS.is_parsed():
        with pytest.raises(LoaderError, match="workers need parsed absl flags"):
            make_loader(SHAPES_NANO, RecordSource(folder), TOKENIZER, dataclasses.replace(SETTINGS, workers=2))
        flags.FLAGS.mark_as_parsed()
    settings = dataclasses.replace(SETTINGS, workers=2)
    made = list(make_loader(SHAPES_NANO, RecordSource(folder), TOKENIZER, settings, start_step=1, stop_step=4))
    assert len(made) == 3
    for step, batch in enumerate(made, 1):
        assert_equal(batch, batches[step].pack)


@pytest.mark.slow
def test_workers_leave_when_their_parent_is_killed(folder, tmp_path):
    """A worker keeps its parent's standard output open, so the output ends when the last worker has left."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import dataclasses, multiprocessing, time
            from absl import flags
            from pdgen.config import SHAPES_NANO
            from pdgen.data.loader import make_loader
            from pdgen.data.records import RecordSource
            from tests.data.test_loader import SETTINGS, TOKENIZER
            if __name__ == "__main__":
                flags.FLAGS.mark_as_parsed()
                settings = dataclasses.replace(SETTINGS, workers=1)
                batches = make_loader(SHAPES_NANO, RecordSource({str(folder)!r}), TOKENIZER, settings)
                next(batches)
                print(*(child.pid for child in multiprocessing.active_children()), flush=True)
                time.sleep(60)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = [sys.executable, script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as run:
        workers = [int(pid) for pid in run.stdout.readline().split()]
        run.kill()
        try:
            run.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            raise
    assert workers


LEAVE_BATCHES = """
import contextlib, dataclasses
from absl import flags
from pdgen.config import SHAPES_NANO
from pdgen.data.loader import make_loader
from pdgen.data.records import RecordSource
from tests.data.test_loader import SETTINGS, TOKENIZER
if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    settings = dataclasses.replace(SETTINGS, workers=2)
    with contextlib.closing(make_loader(SHAPES_NANO, RecordSource({folder!r}), TOKENIZER, settings)) as batches:
        next(batches)
"""


@pytest.mark.slow
def test_unused_batches_leave_no_shared_memory(folder, tmp_path):
    """Python's resource tracker reports what is left, in a line on standard error."""
    script = tmp_path / "train.py"
    script.write_text(LEAVE_BATCHES.format(folder=str(folder)))
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def broken(folder, target, number, change):
    """Copy the data set with the images of record ``number`` changed."""
    source = RecordSource(folder)
    changed = [source[n] for n in range(len(source))]
    segments = [change(s) if isinstance(s, Image) else s for s in changed[number].segments]
    changed[number] = msgspec.structs.replace(changed[number], segments=segments)
    write_dataset(target, changed, Origin(seed=0), records_per_file=10)
    return RecordSource(target)


def test_a_broken_picture_is_named_with_file_and_record(folder, tmp_path):
    source = broken(folder, tmp_path / "set", 12, lambda s: msgspec.structs.replace(s, png=s.png[:90]))
    with pytest.raises(RecordError, match=r"part-00001\.array_record: record 2: record r-0-000012: "):
        list(make_loader(SHAPES_NANO, source, TOKENIZER, SETTINGS, stop_step=10))


def test_missing_latents_are_named_with_file_and_record(folder, tmp_path):
    none = {"latent_mean": None, "latent_logvar": None, "latent_shape": None}
    source = broken(folder, tmp_path / "set", 20, lambda s: msgspec.structs.replace(s, **none))
    with pytest.raises(RecordError, match=r"part-00002\.array_record: record 0: .*no latents; encode"):
        Batches(SHAPES_NANO, source, TOKENIZER, SETTINGS)


def test_a_broken_record_is_refused_though_an_earlier_run_skipped_it(folder, tmp_path):
    """The second run reads the index that the first one wrote."""
    none = {"latent_mean": None, "latent_logvar": None, "latent_shape": None}
    source = broken(folder, tmp_path / "set", 20, lambda s: msgspec.structs.replace(s, **none))
    skipping = Batches(SHAPES_NANO, source, TOKENIZER, dataclasses.replace(SETTINGS, broken="skip"))
    assert skipping.index.broken.tolist() == [20] and len(list(source.folder.glob("lengths-*.npz"))) == 1
    with pytest.raises(RecordError, match=r"part-00002\.array_record: record 0: .*no latents; encode"):
        Batches(SHAPES_NANO, source, TOKENIZER, SETTINGS)


def test_a_small_pack_is_refused(folder):
    settings = dataclasses.replace(SETTINGS, budgets=Budgets(100, 160, 448))
    with pytest.raises(PackingError, match=r"record r-0-\d+ needs text \d+"):
        Batches(SHAPES_NANO, RecordSource(folder), TOKENIZER, settings)


def test_lengths_are_counted_once_per_data_set_and_model(folder, monkeypatch):
    source = RecordSource(folder)
    index = lengths.load_length_index(source, TOKENIZER, SHAPES_NANO)
    monkeypatch.setattr(lengths, "outline", None)  # counting again would fail
    again = lengths.load_length_index(source, TOKENIZER, SHAPES_NANO)
    for field in dataclasses.fields(index):
        np.testing.assert_array_equal(getattr(index, field.name), getattr(again, field.name))
    other = dataclasses.replace(TOKENIZER, fingerprint="another")
    with pytest.raises(TypeError):
        lengths.load_length_index(source, other, SHAPES_NANO)
    larger = dataclasses.replace(SHAPES_NANO, vision=dataclasses.replace(SHAPES_NANO.vision, patch_size=4, max_side=8))
    with pytest.raises(TypeError):
        lengths.load_length_index(source, TOKENIZER, larger)
    with pytest.raises(TypeError):
        lengths.load_length_index(source, TOKENIZER, SHAPES_NANO, draws=5)
    assert not list(folder.glob(".*partial"))


def test_a_garbled_length_file_is_counted_again(folder, tmp_path):
    source = broken(folder, tmp_path / "set", 0, lambda segment: segment)
    index = lengths.load_length_index(source, TOKENIZER, SHAPES_NANO)
    (path,) = source.folder.glob("lengths-*.npz")
    path.write_bytes(path.read_bytes()[:100])
    again = lengths.load_length_index(source, TOKENIZER, SHAPES_NANO)
    np.testing.assert_array_equal(index.tokens, again.tokens)
    np.testing.assert_array_equal(lengths.load_length_index(source, TOKENIZER, SHAPES_NANO).tokens, index.tokens)


def test_changed_records_are_detected(folder):
    source = RecordSource(folder)
    shifted = [source[n] for n in (*range(1, RECORDS), 0)]
    for policy in ("stop", "skip"):
        whole = Batches(SHAPES_NANO, source, TOKENIZER, dataclasses.replace(SETTINGS, broken=policy))
        whole.source = type("Shifted", (RecordSource,), {"__getitem__": lambda self, n: shifted[n]})(folder)
        with pytest.raises(LoaderError, match="is not the record whose tokens were counted"):
            for number in range(20):
                whole.make_pack(number)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_broken_records_are_skipped_and_counted(folder, tmp_path, workers):
    """Two faults: one shows when tokens are counted, one only when the picture is decoded."""
    flags.FLAGS.mark_as_parsed()
    none = {"latent_mean": None, "latent_logvar": None, "latent_shape": None}
    once = broken(folder, tmp_path / "one", 20, lambda s: msgspec.structs.replace(s, **none))
    source = broken(once.folder, tmp_path / "two", 12, lambda s: msgspec.structs.replace(s, png=s.png[:90]))
    settings = dataclasses.replace(SETTINGS, broken="skip", dropout=NO_DROPOUT, workers=workers)
    batches = make_loader(SHAPES_NANO, source, TOKENIZER, settings, stop_step=26)
    assert batches.skipped == {20}
    whole = Batches(SHAPES_NANO, source, TOKENIZER, settings)
    seen = set()
    for step, pack in enumerate(batches):
        documents = [d for row in range(4) for d in whole.packer.choose_documents(4 * step + row)]
        lengths = sum(whole.packer.count_tokens(d)[0] for d in documents if d.record != 12)
        assert np.count_nonzero(pack.text_ids) == lengths
        seen |= {d.record for d in documents}
    assert 12 in seen and 20 not in seen
    assert batches.skipped == {12, 20}


def test_a_pack_of_broken_records_is_padding(folder, tmp_path):
    source = broken(folder, tmp_path / "set", 0, lambda s: msgspec.structs.replace(s, png=s.png[:90]))
    settings = dataclasses.replace(SETTINGS, broken="skip")
    batches = Batches(SHAPES_NANO, source, TOKENIZER, settings)
    batches.packer.choose_documents = lambda number: (Document(0, 0, 0, (0, 1), (True,)),)
    batches.lay_out = lambda document: (_ for _ in ()).throw(RecordError("broken"))
    batch = batches[2]
    np.testing.assert_array_equal(batch.skipped, [0, 0, 0, 0])
    assert not batch.pack.text_weights.any() and not batch.pack.vae_weights.any() and not batch.pack.k_end.any()
    np.testing.assert_array_equal(batch.pack.row, [8, 9, 10, 11])
    stated = pack_shapes(SETTINGS.budgets, SHAPES_NANO, rows=4)
    shapes = jax.tree.map(lambda array: (array.shape, array.dtype), batch.pack)
    assert shapes == jax.tree.map(lambda struct: (struct.shape, struct.dtype), stated)
    np.testing.assert_array_equal(batch.pack.to_sequence[0][batch.pack.to_stream[0]], np.arange(SETTINGS.budgets.total))
