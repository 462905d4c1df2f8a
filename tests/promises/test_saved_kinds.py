"""Each kind of file that is saved: cut, damaged, foreign or incomplete, it is refused by name, or gives the same."""

import io
import json
import pickle
import re
import zipfile
from dataclasses import asdict

import numpy as np
import pytest
from problems import qkv
from tallies import CHANGED, CUT, FOREIGN, LACKING, REFUSED, SAME, note, refused

import asap_ref as ar
from asap_ref import Amortizer, Attention, FidelityReport
from asap_ref.model.architecture import Architecture
from asap_ref.model.optimiser import TrainingSettings
from asap_ref.model.training import train
from asap_ref.model.transformer import Transformer
from asap_ref.support import files
from asap_ref.support.trees import flatten, unflatten

Q, K, V = qkv(4, 2, n=5, d=4)
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.standard_normal((12, 8, 8)), np.arange(12) % 10
MODEL = Transformer.create(
    Architecture(patch=4, width=8, n_layers=2, n_heads=2), Attention("sinkhorn", {"n_iter": 3})
)
AMORTIZER = ar.fit_amortizer([(Q, K)], n_slices=2, n_iter=3, quadratic=2)


def compiled():
    """A layer of ASAP, and one whose heads differ: all that a model may hold."""
    model, _ = ar.compile_model(MODEL, [IMAGES], n_slices=2, candidates=None, moments=0, quadratic=2)
    asap, teacher = model.attentions[0], MODEL.attentions[0]
    part = Attention("asap", {"amortizer": asap.settings["amortizer"].of_heads([1])})
    return MODEL.with_attention(asap, Attention("mixed", {"parts": ((part, (1,)), (teacher, (0,)))}))


COMPILED = compiled()


def save_checkpoint(path):
    train(MODEL, IMAGES, LABELS, TrainingSettings(epochs=2, batch_size=6), checkpoint=path)


def resume(path):
    settings = TrainingSettings(epochs=2, batch_size=6)  # both epochs are done: what comes back was in the file
    return train(MODEL, IMAGES, LABELS, settings, checkpoint=path, resume=True)


def of_model(model):
    return {"params": model.params, "logits": model(model.place(IMAGES))}, asdict(model.architecture)


def of_amortizer(a):
    settings = {name: getattr(a, name) for name in ("epsilon", "n_iter", "objective", "refine")}
    settings["families"] = [family.name for family in a.families]
    return {"predicted": a.predict(Q, K), "r_squared": a.r_squared, "gram": a.statistics.gram}, settings


# kind: (write, read, what must come back as arrays and settings)
KINDS = {
    "amortizer": (AMORTIZER.save, Amortizer.load, of_amortizer),
    "transformer": (COMPILED.save, Transformer.load, of_model),
    "fidelity": (
        ar.fidelity_report(COMPILED, IMAGES).save,
        FidelityReport.load,
        lambda report: (report.samples, {"rows": report.rows}),
    ),
    "checkpoint": (save_checkpoint, resume, lambda trained: (trained[0].params, {"history": trained[1]})),
}
on_every_kind = pytest.mark.parametrize("kind", KINDS)


def frozen(kind, value):
    """Bytes that tell whether two results are the same, to the last bit."""
    arrays, settings = KINDS[kind][2](value)
    flat = {key: (str(np.asarray(x).dtype), np.asarray(x).tobytes()) for key, x in flatten(arrays).items()}
    return repr((flat, settings))


def written(kind, path):
    write, read, _ = KINDS[kind]
    write(path)
    return path.read_bytes(), frozen(kind, read(path))


def outcome(kind, path, expected):
    try:
        found = KINDS[kind][1](path)
    except ValueError as error:
        return "refused" if str(path) in str(error) else f"an error without the file's name: {error}"
    return "same" if frozen(kind, found) == expected else "other numbers"


@on_every_kind
def test_a_file_cut_anywhere_is_refused(kind, tmp_path):
    path = tmp_path / "x.npz"
    whole, expected = written(kind, path)
    for length in np.linspace(0, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:length])
        assert outcome(kind, path, expected) == "refused"
        note(CUT, REFUSED)


@on_every_kind
def test_changed_bytes_never_give_other_numbers(kind, tmp_path):
    path = tmp_path / "x.npz"
    whole, expected = written(kind, path)
    rng = np.random.default_rng(1)
    outcomes = []
    for _ in range(100):
        content = bytearray(whole)
        for offset in rng.integers(0, len(whole), rng.integers(1, 4)):
            content[offset] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        outcomes.append(outcome(kind, path, expected))
    assert set(outcomes) <= {"refused", "same"}
    assert outcomes.count("refused") > 80
    note(CHANGED, REFUSED, outcomes.count("refused"))
    note(CHANGED, SAME, outcomes.count("same"))


@on_every_kind
def test_a_bomb_a_pickle_and_another_kind_are_refused(kind, tmp_path):
    path = tmp_path / "x.npz"
    _, expected = written(kind, path)
    with np.load(path) as archive:
        parts = dict(archive)
    np.savez_compressed(path, **parts)
    assert outcome(kind, path, expected) == "refused"
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(f"{name}.npy", npy_of(part) if name == "header" else pickle.dumps(part))
    assert outcome(kind, path, expected) == "refused"
    note(FOREIGN, REFUSED, 2)
    for other in sorted({*KINDS} - {kind}):
        KINDS[other][0](path)
        with refused(FOREIGN, ValueError, match=f"is of kind '{other}', expected '{kind}'"):
            KINDS[kind][1](path)


def npy_of(x):
    stream = io.BytesIO()
    np.save(stream, x)
    return stream.getvalue()


@on_every_kind
def test_a_sound_file_that_lacks_an_array_or_a_setting_is_refused(kind, tmp_path):
    """As another release may have written it: checksums are right, and yet it cannot be rebuilt."""
    path = tmp_path / "x.npz"
    _, expected = written(kind, path)
    arrays, settings = files.load(path, kind)
    for key in settings:
        files.save(path, kind, arrays, {name: x for name, x in settings.items() if name != key})
        assert outcome(kind, path, expected) == "refused", f"without the setting {key}"
        note(LACKING, REFUSED)
    if kind == "fidelity":  # whose arrays are a dict of any measures
        return
    for key in flatten(arrays):
        lacking = {name: x for name, x in flatten(arrays).items() if name != key}
        files.save(path, kind, unflatten(lacking), settings)
        found = outcome(kind, path, expected)
        # of an amortizer that was put together by hand nobody knows the share that it explains
        assert found == "refused" or key.split("/")[-1] in ("r_squared",), f"without the array {key}: {found}"
        note(LACKING, REFUSED, int(found == "refused"))


def test_a_report_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "report.json"
    files.save_json(path, "report", {"rows": [{"accuracy": 0.5, "name": "é"}], "seed": 0})
    whole = path.read_bytes()
    assert files.load_json(path, "report") == {"rows": [{"accuracy": 0.5, "name": "é"}], "seed": 0}
    for length in range(len(whole) - 1):  # the last byte ends the line
        path.write_bytes(whole[:length])
        with refused(CUT, ValueError, match=re.escape(f"{path} is damaged or was not written by asap_ref")):
            files.load_json(path, "report")
    path.write_text(json.dumps({**json.loads(whole), "version": 99}))
    with refused(FOREIGN, ValueError, match="format version 99, this release reads 1"):
        files.load_json(path, "report")
