"""Figures come from committed records: each can be drawn again, says the same, and has labelled axes."""

import shutil

import pytest

from asap_ref.lab import gallery
from asap_ref.support import presentation


@pytest.mark.parametrize("name", gallery.names())
def test_a_figure_is_drawn_again_from_its_committed_record(name, tmp_path):
    written = gallery.regenerate([name], out=tmp_path, say=lambda line: None)
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    for path in written:
        committed = gallery.scripts()[name].with_name(path.name)
        assert committed.exists(), f"not committed: run asap-ref figures {name}"
        if path.suffix == ".md":
            assert path.read_text() == committed.read_text(), f"run asap-ref figures {name}"
    pictures = {path.suffix for path in written} - {".md"}
    assert pictures in (set(), {".png", ".svg"})


@pytest.mark.parametrize("name", gallery.names())
def test_a_figure_says_what_to_see_and_can_be_measured(name):
    script = gallery.load(name)
    assert script.__doc__.strip().splitlines()[0].endswith(".")
    assert script.draw.__doc__.strip()
    if name == "left_out":
        assert "cannot be measured again" in script.__doc__ and not hasattr(script, "measure")
    else:
        assert script.measure.__doc__.strip()


def test_measuring_writes_the_record_that_is_then_drawn(tmp_path):
    shutil.copy(gallery.scripts()["reproduce"], tmp_path)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "count.py").write_text(
        '"""A table."""\n\n\ndef measure():\n    return {"x": 7}\n\n\n'
        'def draw(record, folder):\n    path = folder / "count.md"\n    path.write_text(str(record["x"]))\n'
        "    return [path]\n"
    )
    assert gallery.names(tmp_path) == ["count", "reproduce"]
    with pytest.raises(ValueError, match="asap-ref figures count --measure"):
        gallery.regenerate(["count"], folder=tmp_path, say=lambda line: None)
    gallery.regenerate(["count"], measure=True, folder=tmp_path, say=lambda line: None)
    assert (tmp_path / "deeper" / "count.md").read_text() == "7"
    assert (tmp_path / "deeper" / "count.json").read_text() == '{\n "x": 7\n}\n'


def test_what_cannot_be_measured_any_more_is_drawn_from_its_record(tmp_path):
    told = []
    written = gallery.regenerate(["left_out"], measure=True, out=tmp_path, say=told.append)
    assert [path.name for path in written] == ["left_out.md"]
    assert told == ["left_out: cannot be measured again; drawn from its record", "left_out: left_out.md"]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no figure nonsense; there are: .*reproduce"):
        gallery.regenerate(["nonsense"])
    with pytest.raises(FileNotFoundError, match="clone it"):
        gallery.names(tmp_path / "absent")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(gallery.scripts()["reproduce"], tmp_path / folder)
    with pytest.raises(ValueError, match=r"two scripts are called reproduce: .*; rename one"):
        gallery.regenerate(folder=tmp_path)


def test_a_figure_without_labels_is_refused(tmp_path):
    fig, axis = presentation.subplots()
    axis.plot([0, 1])
    axis.set(xlabel="x")
    with pytest.raises(ValueError, match="bare: an axis shows numbers but has no label"):
        presentation.save(fig, tmp_path / "bare")
    axis.set(ylabel="y")
    first = [path.read_bytes() for path in presentation.save(fig, tmp_path / "labelled")]
    assert first == [path.read_bytes() for path in presentation.save(fig, tmp_path / "labelled")]
