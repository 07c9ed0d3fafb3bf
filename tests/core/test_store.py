import json

import numpy as np
import pytest

from crosspatch.core import store
from crosspatch.core.errors import BadInput, CorruptFile

ARRAYS = {"raw": np.array([[1.5, np.nan], [0.0, -2.0]], dtype=np.float32), "count": np.arange(3)}


@pytest.fixture
def folder(tmp_path):
    return store.write_result(tmp_path / "runs" / "a", ARRAYS, {"task": "ioi", "n": 2, "none": None, "é": ["x"]})


def test_what_was_written_is_read(folder):
    arrays, meta = store.read_result(folder)
    assert meta == {"task": "ioi", "n": 2, "none": None, "é": ["x"]}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def test_arrays_that_are_not_contiguous_keep_their_order(tmp_path):
    values = np.arange(6.0).reshape(2, 3).T
    arrays, _ = store.read_result(store.write_result(tmp_path / "a", {"v": values}, {}))
    np.testing.assert_array_equal(arrays["v"], values)


def test_nothing_else_is_left_in_the_folder(folder):
    assert sorted(path.name for path in folder.iterdir()) == [store.ARRAYS, store.META]


def test_writing_again_replaces_the_result(folder):
    store.write_result(folder, {"raw": np.zeros(1)}, {"n": 3})
    arrays, meta = store.read_result(folder)
    assert (list(arrays), meta) == (["raw"], {"n": 3})


def test_a_failed_write_leaves_the_old_result(folder, monkeypatch):
    """A full disk shows up at the sync; the old files stay, and no half file is left beside them."""

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(BadInput, match=r"cannot write .*arrays\.safetensors.*No space left on device"):
        store.write_result(folder, {"raw": np.zeros(9)}, {})
    monkeypatch.undo()
    assert store.read_result(folder)[1]["task"] == "ioi"
    assert len(list(folder.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"file.*Give a folder that is writable"):
        store.write_result(tmp_path / "file" / "run", ARRAYS, {})


@pytest.mark.parametrize("value", [float("nan"), object(), b"x"])
def test_meta_that_is_no_json_is_refused(tmp_path, value):
    with pytest.raises(BadInput, match="must be JSON"):
        store.write_result(tmp_path / "a", ARRAYS, {"value": value})


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match="no result folder at"):
        store.read_result(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [store.ARRAYS, store.META])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(CorruptFile, match=f"{name}.* is missing"):
        store.read_result(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_meta_that_is_no_json_when_read(folder, content):
    (folder / store.META).write_bytes(content)
    with pytest.raises(CorruptFile, match="is not JSON"):
        store.read_result(folder)


@pytest.mark.parametrize("content", ["[]", "{}", "3"])
def test_meta_of_something_else(folder, content):
    (folder / store.META).write_text(content)
    with pytest.raises(CorruptFile, match="was not written by crosspatch"):
        store.read_result(folder)


def test_another_format_version(folder):
    head = json.loads((folder / store.META).read_text())
    (folder / store.META).write_text(json.dumps(head | {"format": 99}))
    with pytest.raises(CorruptFile, match=r"has format 99; this version of crosspatch reads 1"):
        store.read_result(folder)


def test_meta_without_its_parts(folder):
    (folder / store.META).write_text(json.dumps({"format": 1, "meta": {}}))
    with pytest.raises(CorruptFile, match="lacks its checksum"):
        store.read_result(folder)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-4] + b"\0\0\0\1", lambda b: b""])
def test_arrays_that_were_changed(folder, damage):
    path = folder / store.ARRAYS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptFile, match="does not match the checksum"):
        store.read_result(folder)


def test_arrays_of_another_format_with_a_right_checksum(folder):
    path = folder / store.ARRAYS
    path.write_bytes(b"not safetensors")
    head = json.loads((folder / store.META).read_text())
    head["arrays_sha256"] = store.sha256(path.read_bytes()).hexdigest()
    (folder / store.META).write_text(json.dumps(head))
    with pytest.raises(CorruptFile, match="is no safetensors file"):
        store.read_result(folder)


def test_a_file_that_cannot_be_read(folder):
    (folder / store.META).unlink()
    (folder / store.META).mkdir()
    with pytest.raises(BadInput, match=r"cannot read .*meta\.json"):
        store.read_result(folder)
