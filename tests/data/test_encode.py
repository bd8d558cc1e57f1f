"""Encoding a data set: the model reads the result, and an interrupted run gives the same bytes."""

import jax
import msgspec
import numpy as np
import pytest

from pdgen.assets import shapes_folder
from pdgen.checkpoints.torch_checkpoint import read_autoencoder
from pdgen.config import SHAPES_AUTOENCODER, SHAPES_NANO
from pdgen.data import encode as encoding
from pdgen.data.encode import Encoder, encode_dataset
from pdgen.data.latents import LatentError, fingerprint_autoencoder, make_encoder
from pdgen.data.records import (
    Dataset,
    Origin,
    RecordError,
    RecordSource,
    find_broken_records,
    write_dataset,
    write_files,
    write_index,
)
from pdgen.files import FolderError
from pdgen.sequence.images import decode_image, image_sizes
from pdgen.sequence.segments import record_segments
from pdgen.sequence.tokenizer import load_tokenizer
from pdgen.sequence.trajectory import Image

from . import handmade

RULE = image_sizes(SHAPES_NANO).vae


@pytest.fixture(scope="module")
def params():
    return read_autoencoder(shapes_folder(), SHAPES_AUTOENCODER)


@pytest.fixture(scope="module")
def encoder(params):
    return Encoder(SHAPES_AUTOENCODER, params, RULE, 8)


@pytest.fixture
def source(tmp_path):
    """A data set of two subsets in four files, with pictures of the model's sizes and larger ones."""
    folder = tmp_path / "data"
    folder.mkdir()
    files = write_files(folder, handmade.records(7, (64, 64)), subset="small", records_per_file=3)
    files += write_files(folder, handmade.records(3, (100, 80)), subset="large")
    write_index(folder, Dataset(files=files, origin=Origin(seed=4, tokenizer="t"), facts={"rejected": 2}))
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_picture_has_moments_that_the_model_reads(source, encoder, params, tmp_path):
    dataset = encode_dataset(source, tmp_path / "out", encoder)
    before, after = RecordSource(source), RecordSource(tmp_path / "out")
    assert after.dataset == dataset
    assert after.subsets == before.subsets
    assert dataset.origin == msgspec.structs.replace(before.dataset.origin, autoencoder=fingerprint_autoencoder(params))
    assert dataset.facts == {"rejected": 2}
    assert list(find_broken_records(tmp_path / "out")) == []
    encode, tokenizer = make_encoder(SHAPES_AUTOENCODER, params), load_tokenizer(shapes_folder())
    for number in range(len(before)):
        old, new = before[number], after[number]
        assert new.id == old.id and record_segments(new, tokenizer, SHAPES_NANO)
        for segment, encoded in zip(old.segments, new.segments, strict=True):
            if not isinstance(segment, Image):
                assert encoded == segment
                continue
            picture = decode_image(encoded.png)
            assert picture.size == ((64, 64) if number < 7 else (64, 48))  # 64 x 51 in multiples of 16
            assert (encoded.png == segment.png) == (number < 7)
            mean, logvar = encode(np.asarray(picture)[None])
            for stored, moment in ((encoded.latent_mean, mean[0]), (encoded.latent_logvar, logvar[0])):
                values = np.frombuffer(stored, np.float16).reshape(encoded.latent_shape)
                np.testing.assert_allclose(values, moment, rtol=2e-3, atol=2e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_encoding_again_changes_nothing_and_in_place_needs_permission(source, encoder, tmp_path):
    encode_dataset(source, tmp_path / "out", encoder)
    with pytest.raises(FolderError, match="data: exists"):
        encode_dataset(source, source, encoder)
    encode_dataset(source, source, encoder, overwrite=True)
    assert contents(source) == contents(tmp_path / "out")
    encode_dataset(tmp_path / "out", tmp_path / "twice", encoder)
    assert contents(tmp_path / "twice") == contents(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out", "twice"]


class Killed(BaseException):
    """An end of a run without any clean-up by its code."""


@pytest.mark.parametrize("after", [0, 1, 3, 4])
def test_a_stopped_run_continues_to_the_same_bytes(source, encoder, tmp_path, monkeypatch, after):
    encode_dataset(source, tmp_path / "whole", encoder)
    written = []

    def stopping(path, *rest):
        if len(written) == after:
            path.with_name(f".{path.name}.partial").write_bytes(b"half")
            raise Killed
        written.append(path.name)
        return write_file(path, *rest)

    write_file = encoding.write_file
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "write_file" if after < 4 else "write_index", stopping)
        with pytest.raises(Killed):
            if after == 4:
                patch.setattr(encoding, "write_file", lambda *a: written.append(a[0].name) or write_file(*a))
            encode_dataset(source, tmp_path / "out", encoder)
    assert not (tmp_path / "out").exists()
    names = []
    monkeypatch.setattr(encoding, "write_file", lambda *a: names.append(a[0].name) or write_file(*a))
    encode_dataset(source, tmp_path / "out", encoder)
    assert written + names == [f.name for f in RecordSource(source).dataset.files]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / ".out.encoding").exists()


def test_unfinished_work_with_other_settings_is_not_mixed_in(source, encoder, params, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "write_index", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            encode_dataset(source, tmp_path / "out", encoder)
    other = jax.tree.map(lambda leaf: leaf * 1.01, params)
    with pytest.raises(LatentError, match=r".out.encoding: was begun with autoencoder=.*; finish that work"):
        encode_dataset(source, tmp_path / "out", Encoder(SHAPES_AUTOENCODER, other, RULE, 8))
    with pytest.raises(LatentError, match="batch_size=8, now it is 9; finish that work, or delete the folder"):
        encode_dataset(source, tmp_path / "out", Encoder(SHAPES_AUTOENCODER, params, RULE, 9))
    with (
        encoding._claim_folder(tmp_path / ".new.encoding", {"source": "x"}),
        pytest.raises(LatentError, match="another process is encoding into it"),
    ):
        encode_dataset(source, tmp_path / "new", encoder)
    (tmp_path / ".out.encoding" / "work.json").unlink()  # killed while the finished folder was being renamed
    for name in ("out", "fresh"):
        encode_dataset(source, tmp_path / name, Encoder(SHAPES_AUTOENCODER, other, RULE, 8))
    assert RecordSource(tmp_path / "out").dataset.origin.autoencoder == fingerprint_autoencoder(other)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_broken_picture_is_named(encoder, tmp_path):
    record = handmade.record(0)
    image = record.segments[2]
    broken = msgspec.structs.replace(image, png=image.png[:60])
    record = msgspec.structs.replace(record, segments=[*record.segments[:2], broken], complete=False)
    write_dataset(tmp_path / "data", [record], Origin(seed=0))
    with pytest.raises(RecordError, match=r"part-00000.array_record: record dots-0: segment 2: not a readable"):
        encode_dataset(tmp_path / "data", tmp_path / "out", encoder)
    assert not (tmp_path / "out").exists()
