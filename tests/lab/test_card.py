"""The script that is run where there is a card, rehearsed where there is none: emulated, and on few tokens."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from asap_ref.lab import card

sys.path.append(str(Path(__file__).parents[1] / "fast" / "kernels"))
PLAN = card.REHEARSED
ATTENTIONS = {"softmax", "sinkhorn, T = 20", "sinkhorn, T = 10", "asap", "asap, prediction alone"}
KERNELS = {
    "kernels moments and form",
    *(f"kernel {name}" for name in ("lse", "attend", "project", "slices", "dual")),
}


@pytest.fixture
def device():
    import emulator
    import stand_in

    if reason := emulator.missing():
        pytest.skip(reason)
    return stand_in.WholeModule()


@pytest.mark.slow
def test_a_rehearsal_measures_everything_and_writes_the_record(device, tmp_path, capsys):
    out = tmp_path / "card.json"
    card.main(["--rehearse", "--out", str(out), "--seconds", "600"])
    record = json.loads(out.read_text())
    assert record["card"] == "no card" and record["left out"] == []
    assert record["tests"]["passed"] is None and "no tests here" in record["tests"]["summary"]
    assert record["agreement"].keys() == {
        f"{a}, {t}" for a in ("softmax", "sinkhorn", "asap") for t in ("float64", "float32")
    }
    assert all(error <= (1e-12 if "64" in name else 5e-6) for name, error in record["agreement"].items())
    for dtype in ("float32", "bfloat16"):
        assert record["ms"][dtype].keys() == {"8", "20"}
        for measured in record["ms"][dtype].values():
            assert measured.keys() >= (ATTENTIONS | KERNELS)
            assert ("torch softmax, fused" in measured) == bool(find_spec("torch"))
            assert all(isinstance(ms, float) and ms > 0 for ms in measured.values()), measured
    assert "no card" in capsys.readouterr().out


def test_without_time_all_that_is_left_out_is_named(device, tmp_path):
    clock = card.Clock(0.0)
    times = card.benchmark(device, lambda: None, clock, PLAN)
    assert all(not measured for sizes in times.values() for measured in sizes.values())
    assert "float32, n = 8: asap" in clock.left_out and "bfloat16, n = 20: kernel dual" in clock.left_out


def test_what_fails_does_not_cost_what_others_measured():
    work = {"fails": lambda: 1 / 0, "works": lambda: None}
    found = card.timed(work, lambda: None, card.Clock(60.0), 3, "here")
    assert found["fails"].startswith("ZeroDivisionError") and found["works"] >= 0


def test_competitors_take_turns():
    """A clock that slows down, or a neighbour on the card, then meets all of them."""
    order = []
    work = {name: lambda name=name: order.append(name) for name in "abc"}
    found = card.timed(work, lambda: None, card.Clock(60.0), 5, "here")
    assert list(found) == ["a", "b", "c"] and order == ["a", "b", "c"] * (3 + 5)


def test_a_slow_one_has_fewer_turns(monkeypatch):
    now, times = [0.0], {"slow": 0.9, "quick": 0.001}
    monkeypatch.setattr(card.time, "perf_counter", lambda: now[0])

    def takes(name):
        now[0] += times[name]
        calls.append(name)

    calls = []
    found = card.timed(
        {name: lambda name=name: takes(name) for name in times}, lambda: None, card.Clock(60.0), 11, ""
    )
    assert {name: calls.count(name) for name in times} == {"slow": 3 + 2, "quick": 3 + 11}
    assert found == pytest.approx({name: 1e3 * seconds for name, seconds in times.items()})


def test_what_has_run_often_enough_when_time_is_over_is_not_left_out():
    clock, turns = card.Clock(60.0), []

    def work():
        turns.append(len(turns))
        if len(turns) == 5:
            clock.end = 0.0

    assert card.timed({"work": work}, lambda: None, clock, 11, "here")["work"] >= 0
    assert len(turns) == 5 and clock.left_out == []


def test_all_that_fail_of_the_tests_are_named():
    code = "print('FAILED one\\nFAILED two\\n' + 'more\\n' * 9)"
    found = card._run([sys.executable, "-c", code + "; raise SystemExit(1)"], 60.0)
    assert not found["passed"] and "FAILED one\nFAILED two" in found["summary"]


def test_every_test_is_run_on_the_card(monkeypatch):
    commands = []
    monkeypatch.setattr(card, "_run", lambda command, seconds: commands.append(command))
    card.run_tests(60.0, card.Plan())
    assert "-x" not in commands[0] and any(part.endswith("test_kernels.py") for part in commands[0])


def test_aims_are_judged_by_ratios_of_times():
    name = "torch sinkhorn, T = 20, log domain"
    times = {"1024": {"asap": 0.2, "torch softmax, fused": 0.1, name: 2.0}, "64": {"asap": "out of memory"}}
    judged = {
        aim["aim"]: aim["met"]
        for aim in card.aims({"float32": times}, {"1024": {"asap": 3.2}, "64": {"asap": 3.0}})
    }
    assert judged == {
        "time of ASAP before there were kernels, over its time, n = 1024": True,
        "time of torch's fused softmax over ASAP's, n = 1024": True,
        "time of torch's Sinkhorn over ASAP's, n = 1024": False,
    }


def test_every_kernel_once(device):
    import stand_in

    with stand_in.counted() as found:
        card.once(device)
    names = ("lse", "attend", "project", "slices", "moments", "form", "dual", "pull", "gradient")
    assert all(found["launch", name] for name in names)


def test_without_cupy_it_says_so_in_a_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(SystemExit) as ended:
        card.main([])
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "cupy" in message and "--rehearse" in message
    assert ended.value.code == 2 and ended.value.__cause__ is None


def test_a_rehearsal_needs_a_clone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(card, "ROOT", tmp_path)
    with pytest.raises(SystemExit):
        card.main(["--rehearse"])
    assert "needs a clone" in capsys.readouterr().err


def test_without_a_card_it_says_so(device, capsys, monkeypatch):
    monkeypatch.setattr(type(device), "is_available", lambda self: False)
    with pytest.raises(SystemExit):
        card.main([], xp=device)
    assert "no CUDA device was found" in capsys.readouterr().err
