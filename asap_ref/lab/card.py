"""All that wants a GPU, in one run of a few minutes: ``python -m asap_ref.lab.card``.

It runs the tests on CuPy (of a clone, an installed package has none), compute-sanitizer where it is installed, and
times the attentions beside torch's on the same card; then it says which aims were met, and writes everything as JSON
with the name of the card. What does not fit in the time is left out, and named. Without a card, ``--rehearse`` does
all of it on few tokens, in a clone, whose tests emulate the kernels on the CPU: its times mean nothing.

    forward passes    softmax, Sinkhorn T = 20 and 10, ASAP, the kernels they are made of one by one, and array forms
    beside them       torch's softmax, fused and unfused, and its log-domain Sinkhorn

Times are medians of wall-clock milliseconds, the host waiting for the device around each round. In every round all
take their turn, so that a clock that changes, or somebody else on the card, meets all of them alike.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import asap_ref as ar
from asap_ref.fast import kernels
from asap_ref.fast.kernels.launch import Problems
from asap_ref.fast.prediction import fast_forms, predicted_dual
from asap_ref.method import attention as readable
from asap_ref.support import files
from asap_ref.support.arrays import array_module, to_numpy

ROOT = Path(__file__).resolve().parents[2]  # of the repository, where the package lies in one
SLICES, ITERATIONS = 16, (20, 10)


@dataclass(frozen=True)
class Plan:
    """What is measured; smaller where it is only rehearsed."""

    sizes: tuple = (64, 256, 1024, 4096, 16384)  # tokens
    longest: int = 65536  # tokens whose memory is measured
    heads: int = 8
    d: int = 64
    rounds: int = 11
    torch_device: str = "cuda"
    tests: tuple = ("tests/fast/kernels/test_kernels.py", "tests/promises/test_namespaces.py")


STAND_IN = "tests/fast/kernels"  # the folder with emulator.py and stand_in.py
REHEARSED = Plan(sizes=(8, 20), longest=40, heads=2, d=8, rounds=1, torch_device="cpu", tests=())


class Clock:
    """How much of the time there is has been used, and what was left out for want of it."""

    def __init__(self, seconds):
        self.end, self.left_out = time.monotonic() + seconds, []

    def left(self):
        """Seconds that are left."""
        return self.end - time.monotonic()

    def allows(self, what, seconds=0.0):
        """Say whether there is so much time left; what there is not is noted."""
        if self.left() > seconds:
            return True
        self.left_out.append(what)
        return False


def tokens(n, plan):
    """Queries, keys and values, (1, heads, n, d) each, as NumPy arrays in float32."""
    return (1.2 * np.random.default_rng(n).standard_normal((3, 1, plan.heads, n, plan.d))).astype(np.float32)


def calibrated(plan):
    """Fit an amortizer with slices and cumulants; its weights do not matter to what it costs."""
    q, k, _ = np.concatenate([tokens(n, plan)[..., :48, :] for n in (48, 49, 50, 51)], axis=1)
    return ar.fit_amortizer([(q, k)], n_slices=SLICES, n_iter=10)


def attentions(ours, amortizer):
    """{what: function} of the attentions on the device, and of their array forms."""
    work = {"softmax": lambda: ar.softmax_attention(*ours)}
    for T in ITERATIONS:
        work[f"sinkhorn, T = {T}"] = lambda T=T: ar.sinkhorn_attention(*ours, n_iter=T)
    work["asap"] = lambda: ar.asap_attention(*ours, amortizer)
    work["asap, prediction alone"] = lambda: predicted_dual(*ours[:2], amortizer, p=ours[2].shape[-1])
    T = ITERATIONS[0]
    work[f"sinkhorn, T = {T}, kernels"] = lambda: kernels.sinkhorn_attention(*ours, n_iter=T)
    for name, form, settings in (
        ("softmax", ar.softmax_attention, {}),
        (f"sinkhorn, T = {T}", ar.sinkhorn_attention, {"n_iter": T}),
        ("asap", ar.asap_attention, {"amortizer": amortizer}),
    ):
        work[f"{name}, array form"] = lambda form=form, settings=settings: _in_array_form(form, *ours, **settings)
    return work


def _in_array_form(form, *args, **settings):
    with kernels.array_forms():
        return form(*args, **settings)


def single_kernels(ours, amortizer):
    """{kernel: function}, with arguments that are on the device already."""
    problems = Problems(*ours)
    slices, form = amortizer.placed(
        kernels.number_like(ours[0]), "fast forms", lambda: fast_forms(amortizer, problems.d)
    )
    f = problems.query_dual(None, 1.0)
    work = {
        "kernel lse": lambda: problems.key_dual(f, 1.0),
        "kernel attend": lambda: problems.attend(None, 1.0),
        "kernel project": lambda: problems.on_slices(slices.theta),
        "kernels moments and form": lambda: problems.quadratic_form(form.a, form.A, form.B, form.c, *(None,) * 4),
    }
    if problems.sort_size():
        x, y = problems.on_slices(slices.theta)
        phi = problems.potentials(x, y, slices.w)
        G, h = problems.quadratic_form(form.a, form.A, form.B, form.c, *(None,) * 4)
        work["kernel slices"] = lambda: problems.potentials(x, y, slices.w)
        work["kernel dual"] = lambda: problems.dual(phi, G, h)
    return work


def torch_attentions(host, dtype, device):
    """{what: function} of torch's."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False  # our products are in float32
    q, k, v = (torch.tensor(x, device=device).to(getattr(torch, dtype)) for x in host)

    def sinkhorn():
        S = q @ k.mT / math.sqrt(q.shape[-1])
        f = -torch.logsumexp(S, -1)
        for _ in range(ITERATIONS[0]):
            g = -torch.logsumexp(S + f[..., :, None], -2)
            f = -torch.logsumexp(S + g[..., None, :], -1)
        return torch.exp(S + f[..., :, None] + g[..., None, :]) @ v

    return {
        "torch softmax, fused": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v),
        "torch softmax, unfused": lambda: torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v,
        f"torch sinkhorn, T = {ITERATIONS[0]}, log domain": sinkhorn,
    }


def timed(work, wait, clock, rounds, label):
    """{what: median milliseconds}, in turns; what fails, for want of memory say, has the reason instead.

    Each runs once to compile what it needs, twice to warm up, then once a round; slow ones, in the first rounds only.
    """
    seconds, wanted, failed = {}, {}, {}
    for turn in range(rounds + 3):
        for name, function in work.items():
            if name in failed or turn >= wanted.get(name, rounds + 3):
                continue
            if clock.left() <= 5.0:  # who has run often enough has a median, of fewer rounds
                if len(seconds.get(name, ())) <= 3:
                    failed[name] = None
                    clock.left_out.append(f"{label}: {name}")
                continue
            try:
                start = time.perf_counter()
                function()
                wait()
                seconds.setdefault(name, []).append(time.perf_counter() - start)
            except Exception as error:  # one that runs out of memory must not cost what the others measured
                failed[name] = f"{type(error).__name__}: {error}"[:200]
            if turn == 1:  # the first run that compiles nothing says how many fit in two seconds
                wanted[name] = 3 + min(rounds, max(1, int(2.0 / max(seconds.get(name, [1])[-1], 1e-6))))
    medians = {
        name: 1e3 * statistics.median(all_of_it[3:]) for name, all_of_it in seconds.items() if all_of_it[3:]
    }
    found = medians | {name: reason for name, reason in failed.items() if reason}
    return {name: found[name] for name in work if name in found}


def benchmark(xp, wait, clock, plan):
    """{dtype: {n: {what: milliseconds}}}, attentions and single kernels, torch's beside them where it is installed."""
    amortizer, times = calibrated(plan), {}
    for dtype in ("float32", "bfloat16"):
        times[dtype] = {}
        for n in plan.sizes:
            host, label = tokens(n, plan), f"{dtype}, n = {n}"
            try:
                ours = [xp.asarray(x.astype(_numpy_dtype(dtype))) for x in host]
            except Exception as error:  # not every CuPy has bfloat16
                times[dtype] = f"{type(error).__name__}: {error}"[:200]
                break
            found = timed(attentions(ours, amortizer), wait, clock, plan.rounds, label)
            found |= timed(single_kernels(ours, amortizer), wait, clock, plan.rounds, label)
            if find_spec("torch"):
                found |= timed(torch_attentions(host, dtype, plan.torch_device), wait, clock, plan.rounds, label)
            times[dtype][str(n)] = found
            print(label, {name: round(ms, 3) if isinstance(ms, float) else ms for name, ms in found.items()})
    return times


def _numpy_dtype(name):
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes  # as JAX and CuPy do

    return np.dtype(ml_dtypes.bfloat16)


def agreement(xp, plan, n=256):
    """Largest error of the kernels on this card, over the largest entry of the readable forms in float64."""
    host, amortizer, worst = tokens(n, plan), calibrated(plan), {}
    for dtype in ("float64", "float32"):
        ours = [xp.asarray(x.astype(dtype)) for x in host]
        for name, more in (("softmax", {}), ("sinkhorn", {"n_iter": 5}), ("asap", {"amortizer": amortizer})):
            expected = getattr(readable, f"{name}_attention")(*host.astype(np.float64), **more)
            found = to_numpy(getattr(ar, f"{name}_attention")(*ours, **more))
            worst[f"{name}, {dtype}"] = float(np.abs(found - expected).max() / np.abs(expected).max())
    return worst


def memory(xp, pool, plan):
    """Bytes that an ASAP forward pass takes beyond its arguments, and the same a token."""
    n, amortizer = plan.longest, calibrated(plan)
    ours = [xp.asarray(x) for x in tokens(n, plan)]
    pool.free_all_blocks()
    before = pool.total_bytes()
    to_numpy(ar.asap_attention(*ours, amortizer))
    return {"n": n, "bytes": pool.total_bytes() - before, "a token": (pool.total_bytes() - before) / n}


def run_tests(seconds, plan):
    """Run the tests on CuPy: whether all passed, and the last lines of what pytest says."""
    paths = [path for path in plan.tests if (ROOT / path).exists()]
    if not paths:
        return {"passed": None, "summary": "there are no tests here; run this in a clone"}
    return _run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cupy", *paths], seconds)


def sanitizer(seconds):
    """What compute-sanitizer says of one pass of everything."""
    if not shutil.which("compute-sanitizer"):
        return {"passed": None, "summary": "compute-sanitizer is not installed"}
    found = {}
    for tool in ("memcheck", "racecheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", sys.executable]
        found[tool] = _run([*command, "-m", "asap_ref.lab.card", "--once"], seconds / 2)
    return {"passed": all(done["passed"] for done in found.values()), **found}


def _run(command, seconds):
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        return {"passed": None, "summary": f"not done after {seconds:.0f} s"}
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    failed = [line for line in lines[:-5] if line.startswith(("FAILED", "ERROR"))]
    return {"passed": done.returncode == 0, "summary": "\n".join(failed + lines[-5:])[-6000:]}


def aims(times, before):
    """[{aim, least, measured, met}] of the float32 times, with those of the record from before there were kernels."""
    found, times = [], times.get("float32", {})

    def add(aim, n, other, least, before=None):
        ours, theirs = times.get(str(n), {}).get("asap"), before or times.get(str(n), {}).get(other)
        if isinstance(ours, float) and isinstance(theirs, float):
            ratio = theirs / ours
            found.append({"aim": f"{aim}, n = {n}", "least": least, "measured": ratio, "met": ratio >= least})

    for n in (64, 256, 1024):
        add(
            "time of ASAP before there were kernels, over its time", n, None, 8, before.get(str(n), {}).get("asap")
        )
    for n in (1024, 4096):
        add("time of torch's fused softmax over ASAP's", n, "torch softmax, fused", 1 / 3)
    for n in map(int, times):
        add("time of torch's Sinkhorn over ASAP's", n, f"torch sinkhorn, T = {ITERATIONS[0]}, log domain", 15)
    return found


def once(xp):
    """Every kernel once, on few tokens: what compute-sanitizer watches."""
    plan = Plan(heads=2, d=20)
    agreement(xp, plan, n=130)
    ours = [xp.asarray(x) for x in tokens(70, plan)]
    _, vjp = ar.sinkhorn_attention_vjp(*ours, n_iter=2)
    vjp(ours[2])


def rehearsal(refuse):
    """What stands in for CuPy where there is no card; ``refuse`` is called with the reason where nothing can."""
    if not (ROOT / STAND_IN / "stand_in.py").exists():
        refuse(f"--rehearse needs a clone of the repository, with {STAND_IN}")
    sys.path.append(str(ROOT / STAND_IN))
    emulator, stand_in = map(importlib.import_module, ("emulator", "stand_in"))
    if reason := emulator.missing():
        refuse(reason)
    return stand_in.WholeModule()


def main(arguments=None, *, xp=None, plan=None):
    """Run everything, and write the record; ``xp`` is CuPy where it is not given."""
    parser = argparse.ArgumentParser(prog="python -m asap_ref.lab.card", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", default="card.json", help="where the record goes (%(default)s)")
    parser.add_argument("--seconds", type=float, default=230.0, help="how long it may take (%(default)s)")
    parser.add_argument("--once", action="store_true", help="only run every kernel once")
    parser.add_argument(
        "--rehearse", action="store_true", help="without a card: emulate everything, on few tokens"
    )
    given = parser.parse_args(arguments)
    if given.rehearse:
        xp, plan = rehearsal(parser.error), plan or REHEARSED
    cupy, plan = xp, plan or Plan()
    if xp is None:
        try:
            xp, cupy = array_module("cupy"), importlib.import_module("cupy")
        except ImportError as error:
            parser.error(f"{error} (without a card, --rehearse emulates everything)")
    if not cupy.is_available():
        parser.error("no CUDA device was found")
    if given.once:
        return once(xp)
    clock, wait = Clock(given.seconds), cupy.cuda.Device().synchronize
    record = {
        "card": cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(),
        "versions": {"cupy": cupy.__version__, "numpy": np.__version__},
        "agreement": agreement(xp, plan),
        "tests": run_tests(0.4 * given.seconds, plan),
        "sanitizer": None if given.rehearse else sanitizer(0.15 * given.seconds),
        "ms": benchmark(xp, wait, clock, plan),
        "memory": memory(xp, cupy.get_default_memory_pool(), plan) if clock.allows("memory", 10.0) else None,
    }
    earlier = ROOT / "figures" / "speed" / "gpu.json"
    before = json.loads(earlier.read_text())["ms"] if earlier.exists() else {}
    record |= {"aims": aims(record["ms"], before), "left out": clock.left_out}
    files.save_text(given.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: record[key] for key in ("card", "agreement", "tests", "aims", "left out")}, indent=1))
    return None


if __name__ == "__main__":
    main()
