"""Files: what was saved comes back, what is damaged or foreign is refused, and nothing is half written."""

import numpy as np
import pytest

from asap_ref import Amortizer, files
from asap_ref.parameters import flatten, place, unflatten
from asap_ref.transformer import Transformer

TREE = {"a": {"b": np.arange(3.0), "c": np.float32([1])}, "d": np.eye(2)}


def test_arrays_and_settings_come_back(tmp_path):
    files.save(tmp_path / "deep" / "x.npz", "example", TREE, {"seed": 0, "name": "é"})
    arrays, settings = files.load(tmp_path / "deep" / "x.npz", "example")
    assert settings == {"seed": 0, "name": "é"}
    for (key, found), (other, expected) in zip(flatten(arrays).items(), flatten(TREE).items(), strict=True):
        assert key == other and found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_nothing_is_lost_or_left_behind_when_a_write_fails(tmp_path):
    path = tmp_path / "x.npz"
    files.save(path, "example", TREE, {})
    before = path.read_bytes()

    def fail(file):
        file.write(b"half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        files.write_atomically(path, fail)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path):
    path = tmp_path / "x.npz"
    files.save(path, "example", TREE, {})
    whole = path.read_bytes()
    damaged = [b"", b"not an archive", whole[: len(whole) // 2], whole[:-10], whole[:60] + b"?" * 40 + whole[100:]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.npz is damaged or was not written by asap_ref"):
            files.load(path, "example")
    np.savez(path, x=np.ones(2))
    with pytest.raises(ValueError, match="was not written by asap_ref"):
        files.load(path, "example")
    np.savez(path, header=np.asarray([object()], dtype=object))  # a pickle inside
    with pytest.raises(ValueError, match="was not written by asap_ref"):
        files.load(path, "example")


def test_other_kinds_and_newer_versions_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    files.save(path, "example", TREE, {})
    with pytest.raises(ValueError, match="is of kind 'example', expected 'amortizer'"):
        Amortizer.load(path)
    with pytest.raises(ValueError, match="expected 'transformer'"):
        Transformer.load(path)
    monkeypatch.setattr(files, "FORMAT_VERSION", 2)
    files.save(path, "example", TREE, {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format version 2, this release reads 1; update"):
        files.load(path, "example")
    with pytest.raises(FileNotFoundError, match="no file"):
        files.load(tmp_path / "absent.npz", "example")


def test_trees_flatten_and_unflatten():
    flat = flatten(TREE)
    assert list(flat) == ["a/b", "a/c", "d"]
    assert unflatten(flat).keys() == TREE.keys()
    np.testing.assert_array_equal(place(TREE, np)["a"]["b"], TREE["a"]["b"])
