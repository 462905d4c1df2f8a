"""The benchmark's parts compute what they say, its record is whole, and its table tells of it. No time is asserted."""

import json
from contextlib import contextmanager

import numpy as np
import pytest

from asap_ref import cli
from asap_ref.lab import bars, benchmark, competitors, gallery, jobs, stopwatch, track
from asap_ref.lab.datasets import Dataset
from asap_ref.lab.experiments import Experiment
from asap_ref.lab.track import Extent, Track
from asap_ref.method import attention
from asap_ref.model.architecture import Architecture
from asap_ref.model.mechanism import Attention
from asap_ref.model.optimiser import TrainingSettings
from asap_ref.model.transformer import Transformer
from asap_ref.support import files

TINY = Extent(
    lengths={"frozen": (16,), "sharp": (), "uniform": (16,)},
    fidelity=16,
    parts=16,
    training=(8,),
    small=(16,),
    long=(16,),
    memory=(),
    compile=16,
    reproduce=False,
)

PACE = {"rounds": 4, "least": 2, "budget": 0.05}


@contextmanager
def tiny_layers():
    """The extent "quick" becomes TINY, in few rounds, and other libraries are not there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(track.EXTENTS, "quick", TINY)
        patch.setitem(track.PACES, "quick", PACE)
        patch.setattr(track, "load_peers", lambda: None)
        patch.setattr(competitors, "TOKENS", 64)
        competitors.amortizer.cache_clear()
        try:
            yield
        finally:
            competitors.amortizer.cache_clear()


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A run on tiny layers, without the other libraries, as where only the package is installed."""
    with tiny_layers():
        out = tmp_path_factory.mktemp("bench") / "bench.json"
        told = []
        benchmark.bench(out, extent="quick", say=told.append)
        found = files.load_json(out, "bench")
        assert bars.markdown(found) == told[-1]
        return found


@pytest.mark.slow
def test_the_record_holds_every_raw_time_and_what_it_was_measured_on(record):
    about = record["about"]
    assert {"processor", "python", "numpy"} <= set(about["machine"]) and about["threads"]["workers"] >= 1
    races = [race for name in ("frozen", "uniform", "parts", "training", "small", "long") for race in record[name]]
    assert len(races) == 6
    assert PACE.items() <= about["settings"].items()
    for race in races:
        for row in race["rows"]:
            # on a machine that does more besides, a call may use up its budget
            assert PACE["least"] <= len(row["seconds"]) <= PACE["rounds"] and min(row["seconds"]) > 0
            assert row["median"] == np.median(row["seconds"])
    assert any("POT and OTT-JAX" in line for line in record["left_out"])
    assert json.loads(json.dumps(record, allow_nan=False)) == record


@pytest.mark.slow
def test_fidelity_is_zero_for_the_teacher_and_not_for_softmax(record):
    rows = {row["name"]: row for row in record["frozen"][0]["rows"]}
    for name in (bars.SCALING, bars.LOG):
        assert rows[name]["output_error"] < 1e-4 and rows[name]["kl"] < 1e-4  # float32 scores of range 100
    assert rows["softmax"]["output_error"] > 0.1 and rows["softmax"]["column_error"] > 0.1


@pytest.mark.slow
def test_bars_are_read_off_the_record_and_judged(record):
    judged = [*bars.judged(record), *bars.judged(record, bars.FORMS)]
    told = {bar.work: (value, bar.met(value)) for bar, value, _ in judged}
    small = {row["name"]: row["median"] for row in record["small"][0]["rows"]}
    value, met = told["default / readable Sinkhorn, 16 tokens, 256 heads"]
    assert value == small["Sinkhorn, default"] / small["Sinkhorn, readable"] and met == (value <= 1)
    assert not any("torch" in work for work in told)  # not measured, not judged


@pytest.mark.slow
def test_the_figure_draws_from_a_run_without_the_other_libraries(record, tmp_path):
    paths = gallery.load("bench").draw(record, tmp_path)
    assert {path.name for path in paths} == {"bench.md", "bench.svg", "bench.png"}


def test_asap_is_compared_with_the_fastest_sinkhorn_that_is_as_near():
    def row(name, median, error):
        return {"name": name, "median": median, "output_error": error}

    rows = [row(bars.SCALING, 9.0, 1e-6), row(bars.ASAP, 3.0, 0.1), row("Sinkhorn, T = 1", 1.0, 0.2)]
    near = [row("Sinkhorn, T = 2", 2.0, 0.1), row("Sinkhorn, T = 3", 4.0, 0.05)]
    assert [r["name"] for r in bars.truncated({"rows": rows})] == [bars.ASAP, bars.SCALING]
    assert bars.truncated({"rows": rows + near})[1]["name"] == "Sinkhorn, T = 2"


def test_sections_are_measured_apart_and_only_by_the_same_machine(tmp_path, monkeypatch):
    out = tmp_path / "bench.json"
    settings = {"extent": "quick", "say": lambda line: None}
    with tiny_layers():
        first = benchmark.bench(out, only=["training"], **settings)
        both = benchmark.bench(out, only=["small"], **settings)
        assert both["training"] == first["training"] and len(both["small"]) == 1 and "frozen" not in both
        monkeypatch.setenv("ASAP_REF_THREADS", "1")
        if both["about"]["threads"]["workers"] != 1:
            with pytest.raises(ValueError, match="measured with another threads; choose another --out"):
                benchmark.bench(out, only=["small"], **settings)
        with pytest.raises(ValueError, match="nonsense"):
            benchmark.bench(out, only=["nonsense"], **settings)


def test_the_command_knows_the_sections():
    assert list(benchmark.SECTIONS) == list(cli.BENCH_SECTIONS)


def test_sinkhorn_in_tiles_is_sinkhorn():
    q, k, v = (x.astype(np.float64) for x in competitors.layer(50, heads=2, d=8))
    found = competitors.sinkhorn_in_tiles(q, k, v, n_iter=6, block=16)
    np.testing.assert_allclose(found, attention.sinkhorn_attention(q, k, v, n_iter=6), atol=1e-12)


def test_layers_have_the_sharpness_they_are_named_after():
    for kind, size in competitors.SHARPNESS.items():
        q, k, _ = competitors.layer(100, kind, heads=2)
        np.testing.assert_allclose((q @ k.mT / 8).std((-2, -1)), size, rtol=1e-3)


@pytest.mark.parametrize("name", ["torch", "ot", "ott"])
def test_other_libraries_compute_the_same_attentions(name):
    pytest.importorskip(name)
    peers = gallery.load("peers")
    q, k, v = competitors.layer(24, heads=2, d=16)
    expected = {
        "softmax": attention.softmax_attention(q, k, v),
        "sinkhorn": attention.sinkhorn_attention(q, k, v, n_iter=competitors.N_ITER),
        "sliced": competitors.SLICED["sliced transport, 16 slices"].prepare(q, k, v)(),
    }
    prefix = {"torch": "torch", "ot": "POT", "ott": "OTT"}[name] + " "
    racers = {
        label: racer for label, racer in peers.forward().items() if label.replace("-", " ").startswith(prefix)
    }
    assert racers
    for label, racer in racers.items():
        found = np.asarray(racer.prepare(q, k, v)())
        size = np.abs(expected[racer.mechanism]).max()
        # soft sorting divides differences of float32 projections by 1e-3; POT and OTT end half an iteration earlier
        atol = (1e-2 if racer.mechanism == "sliced" else 1e-4 if name == "torch" else 1e-3) * size
        np.testing.assert_allclose(found, expected[racer.mechanism], atol=atol, err_msg=label)


def test_gradients_of_torch_are_ours():
    pytest.importorskip("torch")
    peers = gallery.load("peers")
    q, k, v = competitors.layer(24, heads=2, d=16)
    ours = competitors.TRAINING[bars.SCALING].prepare(q, k, v)()
    theirs = peers.training()[bars.TORCH_LOG].prepare(q, k, v)()
    for found, expected in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(np.asarray(found), expected, atol=1e-4 * np.abs(expected).max())


def hold(size):
    """For `peak_memory`: a call that allocates that many bytes and lets go of half."""
    return (lambda: None), (lambda: (np.ones(size // 16), np.ones(size // 16))[0])


def test_peak_memory_is_that_of_the_call():
    peak = stopwatch.peak_memory(hold, size=64 * 2**20)
    if peak is None:
        pytest.skip("this system does not tell the peak of a process")
    assert 60 * 2**20 < peak["bytes"] < 80 * 2**20 and peak["seconds"] > 0


def fail():
    raise MemoryError("no more than that")


def test_a_call_that_fails_alone_says_why_and_a_system_that_does_not_tell_gives_none(monkeypatch):
    with pytest.raises(OSError, match=r"measuring memory of \{\} failed: \['MemoryError: no more than that'\]"):
        stopwatch.peak_memory(fail)
    monkeypatch.setattr(stopwatch.os.path, "exists", lambda path: False)
    assert stopwatch.peak_memory(hold, size=64) is None
    quick = Track("quick", "numpy", say=lambda line: None)
    assert jobs.memory(quick) == []
    assert quick.left_out[-1] == "memory: this system does not tell the peak of a process"


def test_interleaved_stops_who_is_over_budget_after_the_least_rounds():
    times = stopwatch.interleaved({"a": lambda: np.ones(1)}, rounds=9, least=4, budget=0.0)
    assert len(times["a"]) == 4


def test_the_least_times_are_taken_in_turn_and_results_are_kept():
    called = []
    calls = {name: lambda name=name: called.append(name) or np.full(2, len(called)) for name in "ab"}
    found = stopwatch.least_times(calls, rounds=3)
    assert called == ["a", "b", "b", "a", "a", "b"]
    assert all(0 <= milliseconds < np.inf for milliseconds, _ in found.values())
    assert found["a"][1][0] == 5 and found["b"][1][0] == 6  # of the last round


def test_on_another_array_module_sections_of_the_host_are_left_out():
    sections = ("parts", "long", "memory")
    told = []
    with tiny_layers():
        record = benchmark.bench(None, extent="quick", only=sections, backend="array_api_strict", say=told.append)
    assert record["memory"] == record["long"] == []
    assert {line.split(":")[0] for line in record["left_out"]} == {
        "torch, POT and OTT-JAX",
        "long sequences",
        "memory",
    }
    assert {row["name"] for row in record["parts"][0]["rows"]} >= {"prediction", bars.ASAP}
    assert told[-1] == bars.markdown(record)


def test_a_bar_that_the_spread_holds_is_told_apart_from_one_that_is_missed():
    bar = bars.Bar("a / b", "at most", 1.0, lambda record: None)
    assert [bar.verdict(0.9, (0.8, 1.2)), bar.verdict(1.1, (1.05, 1.2))] == ["met", "missed"]
    assert bar.verdict(1.02, (0.97, 1.2)) == "missed, within the spread" and bar.verdict(1.02) == "missed"


def test_an_epoch_is_the_same_in_both_forms_but_for_rounding():
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((32, 8, 8)), np.arange(32) % 10
    data = Dataset("noise", images, labels, images, labels, tuple("0123456789"))
    run = Experiment(
        load=lambda: data,
        architecture=Architecture(patch=4, width=8, n_layers=1, n_heads=2),
        training=TrainingSettings(epochs=1, batch_size=16),
        teacher={"n_iter": 3},
    )
    found = jobs.epochs(Track("quick", "numpy", lambda line: None), run)
    assert all(len(seconds) >= track.PACES["quick"]["least"] for seconds in found.values())
    assert "| sinkhorn | " in bars._epochs(found)
    models = [
        Transformer.create(run.architecture, kind("sinkhorn", run.teacher))
        for kind in (Attention, jobs.ReadableAttention)
    ]
    losses = [jobs.one_epoch(model, images, labels, run.training) for model in models]
    np.testing.assert_allclose(*losses, rtol=1e-12)
