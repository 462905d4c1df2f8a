"""Wrong calls of what works on whole models: compilation, reports, drift, recalibration, mixed heads, data on disk."""

from pathlib import Path

import numpy as np
import pytest
from problems import qkv
from tallies import BATCHES, CALLS, refused

import asap_ref as ar
from asap_ref import Attention, FidelityReport
from asap_ref.calibration import sources
from asap_ref.fidelity import comparison, diagnostics, hardness
from asap_ref.fidelity import report as fidelity
from asap_ref.model.architecture import Architecture
from asap_ref.model.transformer import Transformer

Q, K, V = qkv(2, 2, n=3, d=4)
S = Q @ K.mT
NAN = np.full_like(S, np.nan)
IMAGES = np.random.default_rng(0).standard_normal((12, 8, 8))
SOFTMAX, SINKHORN = Attention("softmax"), Attention("sinkhorn", {"n_iter": 3})
SMALL = Architecture(patch=4, width=8, n_layers=1, n_heads=2)
TEACHER = Transformer.create(SMALL, SINKHORN)
COMPILED, _ = ar.compile_model(TEACHER, [IMAGES], n_slices=2, candidates=None, moments=0, quadratic=0)
DEEPER = Transformer.create(Architecture(patch=4, width=8, n_layers=2, n_heads=2), SINKHORN)
AMORTIZER = ar.fit_amortizer([(Q, K)], n_slices=2, n_iter=3)
REPORT = FidelityReport([], {"output_error": np.ones((5, 1, 2)), "column_error": np.ones((5, 1, 2))})
SHORTER = FidelityReport([], {"output_error": np.ones((5, 1, 2))})
NOTHING = FidelityReport([], {"output_error": np.ones((0, 1, 2)), "column_error": np.ones((0, 1, 2))})
compile_model, report, drift = ar.compile_model, ar.fidelity_report, ar.detect_drift
recalibrate, mixed = ar.recalibrate, ar.mixed_attention

WRONG = [
    # ---- compilation
    (lambda: compile_model(None, [IMAGES]), TypeError, "compile_model: model must be a Transformer, got NoneType"),
    (lambda: compile_model(TEACHER, 3), TypeError, "batches must be a list of inputs, got int"),
    (lambda: compile_model(TEACHER, IMAGES), TypeError, r"got the inputs of one batch; give \[inputs\]"),
    (lambda: compile_model(TEACHER, [NAN[0]]), ValueError, "inputs has shape"),
    (lambda: compile_model(TEACHER, [IMAGES * np.nan]), ValueError, "inputs contains NaN; pass finite values"),
    (lambda: compile_model(TEACHER, [IMAGES], into="softmax"), ValueError, "one of 'asap', 'one-sided'"),
    (lambda: compile_model(TEACHER, [IMAGES], fallback=-1), ValueError, "fallback must be at least 0 and finite"),
    (lambda: compile_model(TEACHER, [IMAGES], fallback=np.nan), ValueError, "fallback must be at least 0"),
    (lambda: compile_model(TEACHER, [IMAGES], fallback="few"), TypeError, "fallback must be a number, got str"),
    (lambda: compile_model(TEACHER, [IMAGES], n_slices=0), ValueError, "n_slices must be at least 1, got 0"),
    (lambda: compile_model(TEACHER, [IMAGES], quadratic=-1), ValueError, "quadratic must be at least 0, got -1"),
    (
        lambda: compile_model(TEACHER, [IMAGES], slices=3),
        TypeError,
        "no setting slices; the families of features are",
    ),
    (lambda: compile_model(COMPILED, [IMAGES]), ValueError, "layer 0 has asap attention, expected sinkhorn"),
    # ---- attentions of models
    (lambda: Attention("sinkhorn", 3), TypeError, "settings must be a dict, got int"),
    (lambda: Attention("sinkhorn", {"n_iter": -1}), ValueError, "n_iter must be at least 0, got -1"),
    (lambda: Attention("sinkhorn", {"temperature": 1}), ValueError, "no setting temperature; its settings are"),
    (lambda: Attention("mixed"), ValueError, "mixed attention needs parts; its settings are: parts"),
    (lambda: Attention("tempered"), ValueError, "name must be one of 'softmax', .*got 'tempered'"),
    (lambda: AMORTIZER.of_heads([]), ValueError, "heads must be some of 0 to 1, got "),
    (lambda: AMORTIZER.of_heads([2]), ValueError, r"heads must be some of 0 to 1, got \[2\]"),
    (lambda: AMORTIZER.of_heads([-1]), ValueError, r"heads must be some of 0 to 1, got \[-1\]"),
    (lambda: AMORTIZER.statistics + None, TypeError, "unsupported operand"),
    # ---- how hard, how faithful
    (lambda: hardness.hardness(None, IMAGES), TypeError, "model must be a Transformer, got NoneType"),
    (lambda: hardness.hardness(COMPILED, IMAGES), ValueError, "layer 0 has asap attention, expected sinkhorn"),
    (lambda: hardness.hardness(TEACHER, IMAGES, tolerance=0), ValueError, "tolerance must be positive"),
    (lambda: hardness.hardness(TEACHER, IMAGES, tolerance=np.nan), ValueError, "tolerance must be positive"),
    (lambda: hardness.hardness(TEACHER, IMAGES, most=0), ValueError, "most must be at least 1, got 0"),
    (lambda: comparison.compare_attentions(TEACHER, [], IMAGES), ValueError, "0 attentions for 1 layers"),
    (
        lambda: fidelity.teacher_of(TEACHER.with_attention(SOFTMAX)),
        ValueError,
        "no Sinkhorn teacher stands behind",
    ),
    (lambda: report(None, IMAGES), TypeError, "compiled must be a Transformer, got NoneType"),
    (lambda: report(COMPILED, IMAGES, teacher=3), TypeError, "teacher must be a Transformer, got int"),
    (lambda: report(COMPILED, IMAGES, teacher=DEEPER), ValueError, "give the model that was compiled"),
    (
        lambda: report(COMPILED, IMAGES, teacher=TEACHER.with_attention(SOFTMAX)),
        ValueError,
        "layer 0 of teacher has softmax attention, expected sinkhorn",
    ),
    (lambda: report(COMPILED, None), TypeError, "inputs must be an array or a list of arrays, got NoneType"),
    (lambda: report(COMPILED, []), ValueError, "inputs is empty; give at least one sequence"),
    (lambda: report(COMPILED, IMAGES[:, :5]), ValueError, r"inputs has shape \(12, 5, 8\), expected"),
    (lambda: report(COMPILED, IMAGES * np.inf), ValueError, "inputs contains (NaN|infinity)"),
    (lambda: report(COMPILED, IMAGES, most=0), ValueError, "most must be at least 1, got 0"),
    (lambda: report(COMPILED, IMAGES, most=1.5), TypeError, "most must be an integer, got float 1.5"),
    # ---- counts, which cannot be NaN themselves, say so too
    (lambda: diagnostics.equivalent_iterations(S, NAN, S), ValueError, "plan contains NaN; pass finite values"),
    (lambda: diagnostics.equivalent_iterations(NAN, S, S), ValueError, "scores contains NaN; pass finite values"),
    # ---- an argument that is not there at all
    (lambda: diagnostics.sink_score(None), TypeError, "plan must be an array, got NoneType"),
    (lambda: ar.softmax_attention(Q, None, V), TypeError, "k must be an array, got NoneType"),
    (lambda: ar.transport_plan(S, None), TypeError, "duals must be a tuple of 2 arrays, got NoneType"),
    (lambda: TEACHER(None), TypeError, "inputs must be an array, got NoneType"),
    # ---- drift and recalibration
    (lambda: drift(REPORT, None), TypeError, "after must be a FidelityReport, got NoneType"),
    (lambda: drift(REPORT, SHORTER), ValueError, "before measured .*'column_error'.*, after "),
    (lambda: drift(SHORTER, REPORT), ValueError, "make both reports with fidelity_report"),
    (lambda: drift(REPORT, NOTHING), ValueError, "before is of 5 sequences, after of 0; at least one is needed"),
    (lambda: drift(FidelityReport([], {}), FidelityReport([], {})), ValueError, "the reports hold no measures"),
    (lambda: drift(REPORT, REPORT, level="0.05"), TypeError, "level must be a number, got str"),
    (lambda: drift(REPORT, REPORT, level=0), ValueError, "level must be positive"),
    (lambda: drift(REPORT, REPORT, level=np.nan), ValueError, "level must be positive and finite, got nan"),
    (lambda: drift(REPORT, REPORT, level=1), ValueError, "level must be between 0 and 1, got 1"),
    (lambda: recalibrate(None, [(Q, K)]), TypeError, "amortizer must be an Amortizer, .*got NoneType"),
    (lambda: recalibrate(AMORTIZER, 3), TypeError, "batches must be an iterable of batches, got int"),
    (lambda: recalibrate(AMORTIZER, []), ValueError, r"batches is empty; give at least one \(q, k\)"),
    (lambda: recalibrate(AMORTIZER, [(Q, K * np.nan)]), ValueError, "k contains NaN"),
    (lambda: recalibrate(AMORTIZER, [(Q,)]), TypeError, r"batches must yield tuples \(q, k\)"),
    (lambda: recalibrate(AMORTIZER, [(Q[:, :1], K[:, :1])]), ValueError, "must come from the same heads"),
    (lambda: recalibrate(AMORTIZER, [(Q[..., :2], K[..., :2])]), ValueError, r"directions has .*d = 2 as in q"),
    (lambda: recalibrate(AMORTIZER, [(Q, K)], ridge=-1), ValueError, "ridge must be at least 0 and finite"),
    (lambda: recalibrate(AMORTIZER, [(Q, K)], ridge=np.nan), ValueError, "ridge must be at least 0 and finite"),
    (lambda: recalibrate(AMORTIZER, [(Q, K)], forget=-0.1), ValueError, "forget must be at least 0 and finite"),
    (lambda: recalibrate(AMORTIZER, [(Q, K)], forget=1.1), ValueError, "forget must be from 0 to 1, got 1.1"),
    (lambda: recalibrate(AMORTIZER, [(Q, K)], forget="half"), TypeError, "forget must be a number, got str"),
    # ---- heads with mechanisms of their own
    (lambda: mixed(Q, K, V, None), TypeError, r"parts must be a list of \(Attention, heads\), got None"),
    (lambda: mixed(Q, K, V, 3), TypeError, "got 3 in it"),
    (lambda: mixed(Q, K, V, [SOFTMAX]), TypeError, "got Attention in it"),
    (lambda: mixed(Q, K, V, [("softmax", [0, 1])]), TypeError, "got tuple in it"),
    (lambda: mixed(Q, K, V, [(SOFTMAX, 2)]), TypeError, "gives Attention the heads 2, expected a list"),
    (lambda: mixed(Q, K, V, [(SOFTMAX, [0, 1.5])]), TypeError, r"heads \[0, 1.5\], expected a list"),
    (lambda: mixed(Q, K, V, [(SOFTMAX, "01")]), TypeError, "heads '01', expected a list"),
    (lambda: mixed(Q, K, V, [(SOFTMAX, [0, 1]), (SINKHORN, [])]), TypeError, "at least one integer"),
    (lambda: mixed(Q, K, V, []), ValueError, "expected each of 0 to 1 once"),
    (lambda: mixed(Q, K, V, [(SOFTMAX, [0])]), ValueError, r"parts has heads \[0\], expected each of 0 to 1 once"),
    (lambda: mixed(Q, K * np.nan, V, [(SOFTMAX, [0, 1])]), ValueError, "k contains NaN"),
    (
        lambda: mixed(Q, K, V, [(Attention("asap", {"amortizer": AMORTIZER}), [0]), (SOFTMAX, [1])]),
        ValueError,
        r"weights has shape \(2, 5\), expected \(H, F\) = \(1, 5\)",
    ),
    (lambda: mixed(Q[0, 0], K[0, 0], V[0, 0], [(SOFTMAX, [0])]), ValueError, r"q has shape \(3, 4\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_wrong_calls(call, error, message):
    with refused(CALLS, error, match=message):
        call()


def of_objects():
    return np.asarray([None], dtype=object)


DAMAGED = {  # file name: how to write it, what is said
    "no.npz": (lambda path: None, FileNotFoundError, "batches: no file .*no.npz"),
    "no.npy": (lambda path: None, FileNotFoundError, "batches: no file .*no.npy"),
    "text.txt": (lambda path: path.write_text("hello"), ValueError, "text.txt is no .npy or .npz file of numbers"),
    "empty.npz": (lambda path: path.write_bytes(b""), ValueError, "empty.npz is no .npy or .npz file"),
    "objects.npy": (
        lambda path: np.save(path, of_objects()),
        ValueError,
        "objects.npy is no .* allow_pickle=False",
    ),
    "objects.npz": (
        lambda path: np.savez(path, q=of_objects(), k=Q),
        ValueError,
        "objects.npz is no .npy or .npz",
    ),
    "other.npz": (lambda path: np.savez(path, x=Q), ValueError, r"other.npz has \['x'\], expected arrays q and k"),
    "one.npy": (lambda path: np.save(path, Q[:1]), (TypeError, ValueError), "batch"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_batches_on_disk_that_cannot_be_read_are_named(tmp_path, name):
    write, error, message = DAMAGED[name]
    write(tmp_path / name)
    with refused(BATCHES, error, match=message):
        ar.fit_amortizer([tmp_path / name])


def test_batches_cut_anywhere_are_refused(tmp_path):
    """Never other numbers, never a pickle; NumPy's own files carry checksums in .npz alone."""
    path = tmp_path / "batch.npz"
    np.savez(path, q=Q, k=K)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with refused(BATCHES, ValueError, match=r"batch.npz is no .npy or .npz file of numbers, or damaged"):
            sources.load(path)
    path.write_bytes(whole)
    np.testing.assert_array_equal(sources.load(path), (Q, K))


def test_a_path_that_is_no_zarr_group_says_what_may_be_given(tmp_path, monkeypatch):
    pytest.importorskip("zarr", reason="needs zarr: pip install asap-ref[distributed]")
    (tmp_path / "file.txt").write_text("hello")
    for path, message in ((tmp_path / "none", "is not there"), (tmp_path / "file.txt", "is no zarr group")):
        with pytest.raises(FileNotFoundError, match=f"{path.name} {message}; .*as a list of paths"):
            ar.fit_amortizer(path)
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(ModuleNotFoundError, match=r"zarr is not installed; pip install 'asap-ref\[distributed\]'"):
        ar.fit_amortizer(Path("calibration.zarr"))
