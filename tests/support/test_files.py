"""Files: what was saved comes back, what is damaged or foreign is refused, and nothing is half written."""

import io
import json
import os
import pickle
import time
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from tallies import CHANGED, CUT, FOREIGN, MOVED, REFUSED, SAME, note, refused

from asap_ref import Amortizer
from asap_ref.model.transformer import Transformer
from asap_ref.support import files
from asap_ref.support.trees import count, flatten, place, unflatten

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


def small_file(tmp_path):
    path = tmp_path / "x.npz"
    files.save(path, "example", TREE, {"seed": 0})
    return path, path.read_bytes()


def outcome(path):
    """What loading gives: "refused" if it says so by the file's name, "same" if nothing was changed."""
    try:
        arrays, settings = files.load(path, "example")
    except ValueError as error:
        return "refused" if str(error).startswith(f"{path} ") else f"an error without the file's name: {error}"
    found, expected = flatten(arrays), flatten(TREE)
    assert settings == {"seed": 0} and list(found) == list(expected)
    for key in expected:
        assert found[key].dtype == expected[key].dtype and np.array_equal(found[key], expected[key])
    return "same"


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_cut_anywhere_is_refused(tmp_path, step):
    path, whole = small_file(tmp_path)
    for length in range(0, len(whole), step):
        path.write_bytes(whole[:length])
        assert outcome(path) == "refused", f"cut to {length} of {len(whole)} bytes"
    note(CUT, REFUSED, len(range(0, len(whole), step)))


@pytest.mark.parametrize("each_of", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_changed_byte_anywhere_is_refused_or_harmless(tmp_path, each_of):
    """Never other numbers: a change is caught by a checksum, or hits a field that nothing depends on (a date)."""
    path, whole = small_file(tmp_path)
    rng = np.random.default_rng(0)
    outcomes = []
    for flips in ([1] * len(whole), [255] * len(whole), *rng.integers(1, 256, (2, len(whole))).tolist())[
        -each_of:
    ]:
        for offset, flip in enumerate(flips):
            path.write_bytes(whole[:offset] + bytes([whole[offset] ^ flip]) + whole[offset + 1 :])
            outcomes.append(outcome(path))
    assert set(outcomes) == {"refused", "same"}
    assert outcomes.count("refused") > 0.8 * len(outcomes)
    note(CHANGED, REFUSED, outcomes.count("refused"))
    note(CHANGED, SAME, outcomes.count("same"))


def test_bytes_put_in_taken_out_or_shuffled_are_refused_or_harmless(tmp_path):
    path, whole = small_file(tmp_path)
    rng = np.random.default_rng(1)
    for _ in range(300):
        i, j = sorted(rng.integers(0, len(whole), 2))
        for content in (
            whole[:i] + whole[j:],
            whole[:i] + rng.bytes(int(j - i) + 1) + whole[j:],
            whole[:i] + whole[i:j][::-1] + whole[j:],
            rng.bytes(int(j)),
        ):
            path.write_bytes(content)
            found = outcome(path)
            assert found in ("refused", "same")
            note(MOVED, REFUSED if found == "refused" else SAME)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not an archive"),
        lambda path: path.write_bytes(npy((2,), b"12345678" * 2)),
        lambda path: np.savez(path, x=np.ones(2)),
        lambda path: np.savez(path, header=np.asarray("{}")),
        lambda path: np.savez(path, header=np.asarray("[" * 10**5)),
        lambda path: np.savez(path, header=np.asarray(json.dumps({"kind": "example", "settings": {}}))),
        lambda path: path.write_bytes(pickle.dumps(TREE)),
    ],
)
def test_foreign_files_are_refused_by_name(tmp_path, write):
    path = tmp_path / "x.npz"
    write(path)
    with refused(FOREIGN, ValueError, match=r"x\.npz is damaged or was not written by asap_ref"):
        files.load(path, "example")


class Bomb:
    """A pickle that would show that it was opened."""

    def __reduce__(self):
        return pytest.fail, ("a file was unpickled",)


def test_pickles_are_never_opened(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, header=np.asarray([Bomb()], dtype=object))
    with refused(FOREIGN, ValueError, match="is of type object, which this release does not read"):
        files.load(path, "example")
    header = np.asarray(json.dumps({"format": "asap_ref", "version": 1, "kind": "example", "settings": {}}))
    np.savez(path, header=header, x=np.asarray([Bomb()], dtype=object))
    with refused(FOREIGN, ValueError, match="is of type object"):
        files.load(path, "example")
    with zipfile.ZipFile(path, "w") as archive:  # a bare pickle in place of an array, as np.load would unpickle
        archive.writestr("header.npy", pickle.dumps(Bomb()))
    with refused(FOREIGN, ValueError, match="was not written by asap_ref"):
        files.load(path, "example")


def npy(shape, content=b"", dtype="<f8"):
    """Bytes of an .npy part whose header may promise more than there is."""
    stream = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + content


def test_a_file_that_would_grow_when_it_is_read_is_refused_before_it_does(tmp_path):
    path = tmp_path / "x.npz"
    bombs = {}
    np.savez_compressed(path, header=np.zeros(10**6))  # 8 MB in 8 kB
    bombs["its parts are compressed"] = path.read_bytes()
    for name, shape in (("huge", (10**15,)), ("overflowing", (2**40, 2**40)), ("short", (3,)), ("long", (1,))):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name}.npy", npy(shape, b"12345678" * 2))
        bombs[f"part {name}.npy is not of the size"] = path.read_bytes()
    for name, dtype in (("structured", [("a", "<f8")]), ("complex", "<c16"), ("dates", "<M8[s]")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name}.npy", npy((1,), b"12345678" * 2, dtype))
        bombs[f"part {name}.npy is of type"] = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of what we do on purpose
        for _ in range(2):
            archive.writestr("x.npy", npy((1,), b"12345678"))
    bombs["two of its parts have the same name"] = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy((1,), b"12345678"))
        archive.filelist[0].file_size = archive.filelist[0].compress_size = 10**9  # as overlapping parts do
    bombs["its parts claim to be larger than the file"] = path.read_bytes()
    tracemalloc.start()
    for message, content in bombs.items():
        path.write_bytes(content)
        tracemalloc.reset_peak()
        with refused(FOREIGN, ValueError, match=message):
            files.load(path, "example")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_other_kinds_and_other_versions_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    files.save(path, "example", TREE, {})
    with refused(FOREIGN, ValueError, match="is of kind 'example', expected 'amortizer'"):
        Amortizer.load(path)
    with refused(FOREIGN, ValueError, match="expected 'transformer'"):
        Transformer.load(path)
    monkeypatch.setattr(files, "FORMAT_VERSION", 2)
    files.save(path, "example", TREE, {})
    files.save_json(tmp_path / "x.json", "report", {})
    monkeypatch.undo()
    with refused(FOREIGN, ValueError, match="format version 2, this release reads 1; update"):
        files.load(path, "example")
    with refused(FOREIGN, ValueError, match="format version 2, this release reads 1; update"):
        files.load_json(tmp_path / "x.json", "report")
    (tmp_path / "other.json").write_text('{"version": 1, "kind": "report"}')
    with refused(FOREIGN, ValueError, match="was not written by asap_ref: it does not say that it is"):
        files.load_json(tmp_path / "other.json", "report")
    with pytest.raises(FileNotFoundError, match="no file"):
        files.load(tmp_path / "absent.npz", "example")
    with pytest.raises(IsADirectoryError):
        files.load(tmp_path, "example")


def test_reports_say_what_they_are(tmp_path):
    files.save_json(tmp_path / "x.json", "report", {"rows": [1, 2]})
    assert json.loads((tmp_path / "x.json").read_text())["version"] == files.FORMAT_VERSION
    assert files.load_json(tmp_path / "x.json", "report") == {"rows": [1, 2]}
    with refused(FOREIGN, ValueError, match="is of kind 'report', expected 'bench'"):
        files.load_json(tmp_path / "x.json", "bench")
    for content in ("", "[]", "{", "\xff"):
        (tmp_path / "x.json").write_text(content, encoding="latin-1")
        with refused(FOREIGN, ValueError, match=r"x\.json is damaged or was not written by asap_ref"):
            files.load_json(tmp_path / "x.json", "report")


def test_what_a_killed_writer_left_is_cleared_when_it_is_old_enough(tmp_path):
    path, _ = small_file(tmp_path)
    ends = (f"{letter * 16}.tmp" for letter in "abc")
    old, new, other = (tmp_path / f".{name}.npz.{end}" for name, end in zip("xxy", ends, strict=True))
    of_user = tmp_path / ".x.npz.backup"
    for leftover in (old, new, other, of_user):
        leftover.write_bytes(b"half")
    long_ago = time.time() - 2 * 3600
    for leftover in (old, other, of_user):
        os.utime(leftover, (long_ago, long_ago))
    files.save(path, "example", TREE, {"seed": 0})
    assert not old.exists() and new.exists() and other.exists() and of_user.exists()
    assert outcome(path) == "same"


@pytest.mark.skipif(os.name != "posix", reason="modes and links are those of POSIX")
def test_a_file_that_is_written_again_keeps_its_mode_and_stays_where_links_point(tmp_path):
    path, link = tmp_path / "x.npz", tmp_path / "link.npz"
    before = os.umask(0o027)
    try:
        files.save(path, "example", TREE, {})
        assert path.stat().st_mode & 0o777 == 0o640  # a new one is an ordinary file
        for mode in (0o600, 0o664, 0o444):
            path.chmod(mode)
            files.save(path, "example", TREE, {"mode": mode})
            assert path.stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)
    link.symlink_to(path.name)
    files.save(link, "example", TREE, {"through": "the link"})
    assert link.is_symlink() and files.load(path, "example")[1] == {"through": "the link"}
    dangling = tmp_path / "dangling.json"
    dangling.symlink_to("there/later.json")
    files.save_json(dangling, "report", {})
    assert dangling.is_symlink() and (tmp_path / "there" / "later.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"x.npz", "link.npz", "dangling.json", "there"}


def test_what_is_no_ordinary_file_is_not_replaced_by_one(tmp_path):
    with pytest.raises(OSError, match="is a folder; give the name of a file"):
        files.save_text(tmp_path, "text")
    with pytest.raises(OSError, match="is no ordinary file; give the name of a file"):
        files.save_text(os.devnull, "text")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        files.save_text(tmp_path / "file" / "below", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["n" * 251 + ".npz", "ä" * 125 + ".npz", "[x]*?.npz"])
def test_names_as_long_as_file_systems_allow(tmp_path, name):
    for seed in (0, 1):
        files.save(tmp_path / name, "example", TREE, {"seed": seed})
    assert files.load(tmp_path / name, "example")[1] == {"seed": 1}
    with pytest.raises(OSError, match="File name too long"):
        files.save_text(tmp_path / ("n" * 300), "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_of_ours_in_the_other_form_is_not_called_damaged(tmp_path):
    files.save(tmp_path / "a.npz", "example", TREE, {})
    files.save_json(tmp_path / "b.json", "report", {})
    with pytest.raises(ValueError, match=r"a\.npz is of kind 'example', expected 'report'"):
        files.load_json(tmp_path / "a.npz", "report")
    with pytest.raises(ValueError, match=r"b\.json is of kind 'report', expected 'example'"):
        files.load(tmp_path / "b.json", "example")


def test_numbers_of_a_tree_are_counted():
    assert count(TREE) == 3 + 1 + 4 and count({}) == 0


def test_trees_flatten_and_unflatten():
    flat = flatten(TREE)
    assert list(flat) == ["a/b", "a/c", "d"]
    assert unflatten(flat).keys() == TREE.keys()
    np.testing.assert_array_equal(place(TREE, np)["a"]["b"], TREE["a"]["b"])


def test_data_that_was_given_for_a_model_is_told_by_what_it_holds(tmp_path):
    np.savez(tmp_path / "own.npz", X=np.ones((2, 3)), y=np.arange(2))
    with pytest.raises(ValueError, match="was not written by asap_ref: it has no header, only X, y"):
        files.load(tmp_path / "own.npz", "transformer")
