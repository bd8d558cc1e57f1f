"""Files and folders appear complete or not at all, and nothing is replaced without permission."""

import errno
import os
import pickle
import shutil

import numpy as np
import PIL
import pytest

from pdgen.files import (
    FolderError,
    check_settings,
    check_writable,
    describe_fault,
    file_lock,
    is_plain_name,
    load_arrays,
    lock_folder,
    new_file,
    new_folder,
    to_os_error,
)
from tests.support.disks import forbid_writing, limit_file_size


def has_mark(folder):
    return (folder / "mark").is_file()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "a.txt"
    for text in ("one", "two"):
        with new_file(target) as partial:
            partial.write_text(text)
            assert not target.exists() or target.read_text() == "one"
        assert (target.read_text(), names(tmp_path)) == (text, ["a.txt"])


def test_a_failure_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), new_file(target) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert (target.read_text(), names(tmp_path)) == ("old", ["a.txt"])


def test_a_full_disk_is_reported_with_the_file(tmp_path):
    target = tmp_path / "a.bin"
    with pytest.raises(OSError) as caught, limit_file_size(10), new_file(target) as partial:
        partial.write_bytes(bytes(1000))
    assert caught.value.filename == str(target) and names(tmp_path) == []
    line = f"{target}: File too large; make room and run again, the same command continues where it can"
    assert describe_fault(caught.value) == line


def test_other_errors_in_the_block_keep_their_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, new_file(tmp_path / "a.bin"):
        (tmp_path / "none").read_bytes()
    assert describe_fault(caught.value) == f"{tmp_path}/none: No such file or directory; check the path and its disk"
    assert describe_fault(PIL.UnidentifiedImageError("cannot identify image")) == "cannot identify image"


@pytest.mark.parametrize(
    ("text", "number", "reason"),
    [
        ("write() failed: No space left on device; at byte 7", errno.ENOSPC, "No space left on device"),
        ("open() failed: Permission denied; x", errno.EACCES, "Permission denied"),
        ("something\n else", errno.EIO, "something else"),
    ],
)
def test_errors_of_other_libraries_become_oserror(text, number, reason):
    fault = to_os_error(RuntimeError(text), "a.bin")
    assert (fault.errno, fault.strerror, fault.filename) == (number, reason, "a.bin")


def test_a_folder_is_checked_before_work_is_written_to_it(tmp_path):
    check_writable(tmp_path / "deep" / "data")
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    for folder, where in ((tmp_path, ""), (tmp_path / "deep" / "data", f" in {tmp_path}")):
        with forbid_writing(tmp_path), pytest.raises(FolderError) as caught:
            check_writable(folder)
        line = f"{folder}: cannot be written{where} (Permission denied); change the permissions, or choose another"
        assert str(caught.value) == f"{line} folder"
    with pytest.raises(FolderError, match=r"file/data: cannot be written in .*file \(Not a directory\)"):
        check_writable(tmp_path / "file" / "data")
    assert names(tmp_path) == ["file"]


def test_a_folder_appears_with_its_parents_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "data"
    with new_folder(target, kind="data set", replaceable=has_mark) as partial:
        (partial / "mark").write_text("1")
        assert not target.exists()
    assert (names(target), names(target.parent)) == (["mark"], ["data"])
    with new_folder(target, kind="data set", replaceable=has_mark, overwrite=True) as partial:
        (partial / "other").write_text("2")
    assert (names(target), names(target.parent)) == (["other"], ["data"])


def test_existing_folders_stay_without_permission(tmp_path):
    target = tmp_path / "data"
    target.mkdir()
    (target / "mark").write_text("1")
    with pytest.raises(FolderError, match="data: exists; choose another target or add --overwrite"):
        new_folder(target, kind="data set", replaceable=has_mark).__enter__()
    (target / "mark").rename(target / "thesis")
    with pytest.raises(FolderError, match="data: exists and is no data set, so --overwrite does not replace it"):
        new_folder(target, kind="data set", replaceable=has_mark, overwrite=True).__enter__()
    assert (names(target), names(tmp_path)) == (["thesis"], ["data"])


def test_a_failure_leaves_the_old_folder(tmp_path):
    target = tmp_path / "data"
    target.mkdir()
    (target / "mark").write_text("1")
    for fault in (KeyboardInterrupt, RuntimeError):
        with (
            pytest.raises(fault),
            new_folder(target, kind="data set", replaceable=has_mark, overwrite=True) as partial,
        ):
            (partial / "half").write_text("2")
            raise fault
        assert (names(target), names(tmp_path)) == (["mark"], ["data"])


def test_a_full_disk_is_reported_before_and_during_writing(tmp_path, monkeypatch):
    with (
        pytest.raises(FolderError, match=r"the disk or its quota is full; make room"),
        new_folder(tmp_path / "data", kind="data set", replaceable=has_mark),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(FolderError, match=r"data: needs 1,000 bytes, .* has 5 free; make room"):
        new_folder(tmp_path / "data", 1000, kind="data set", replaceable=has_mark).__enter__()
    assert names(tmp_path) == []


def test_leftovers_of_a_killed_run_are_reported(tmp_path):
    left = tmp_path / ".data.partial-1"
    left.mkdir()
    lines = []
    with new_folder(tmp_path / "data", kind="data set", replaceable=has_mark, log=lines.append):
        pass
    assert len(lines) == 1 and str(left) in lines[0]


def test_a_lock_has_one_holder(tmp_path):
    with file_lock(tmp_path / "lock") as first, file_lock(tmp_path / "lock") as second:
        assert (first, second) == (True, False)
    with file_lock(tmp_path) as first:
        assert first
        with pytest.raises(FolderError, match="another process is reading it; wait for its end"):
            lock_folder(tmp_path, "reading it").__enter__()
    with lock_folder(tmp_path, "reading it"):
        pass


def test_a_folder_is_resumed_with_the_settings_that_it_was_begun_with(tmp_path):
    check_settings(tmp_path, {"a": 1}, {"a": 1}, remedy="")
    for wanted, line in (({"a": 2}, "a=1, now it is 2; start anew"), ({}, "a=1, now it is None; start anew")):
        with pytest.raises(FolderError, match=f"was begun with {line}"):
            check_settings(tmp_path, {"a": 1}, wanted, remedy="start anew")


def test_arrays_round_trip_through_an_archive(tmp_path):
    made = {"one": np.arange(6).reshape(2, 3), "two": np.float32([0.5])}
    np.savez(tmp_path / "a.npz", **made)
    read = load_arrays(tmp_path / "a.npz")
    assert read.keys() == made.keys()
    for name, values in made.items():
        np.testing.assert_array_equal(read[name], values)


def test_files_that_are_not_archives_are_a_value_error(tmp_path):
    np.savez(tmp_path / "a.npz", values=np.arange(6))
    whole = (tmp_path / "a.npz").read_bytes()
    directory = whole.index(b"PK\x01\x02")
    other_method = whole[: directory + 10] + b"\x63" + whole[directory + 11 :]  # zipfile raises NotImplementedError
    for data in (b"", whole[:40], other_method, pickle.dumps([1])):
        (tmp_path / "a.npz").write_bytes(data)
        with pytest.raises(ValueError, match=r"^no whole NumPy archive "):
            load_arrays(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", objects=np.array([{}], object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_arrays(tmp_path / "b.npz")


def test_plain_names():
    assert all(is_plain_name(name) for name in ("a.png", " .png", "..png"))
    assert not any(is_plain_name(name) for name in ("", "..", ".", "a/b.png", "/a.png", "a/", "a\0.png"))
    assert is_plain_name("a.png", ".png") and not is_plain_name("a.png", ".jpg")
