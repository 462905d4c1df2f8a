"""What belongs to the whole process stays as it was found, and does not change what is computed.

The other way round as well: a thread, a process however started, a worker of Dask, a mode of a framework that
somebody else has set, all get the numbers that the main thread gets.
"""

import contextlib
import importlib
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from clusters import cluster
from operators import OPERATORS, convert, map_arrays, outputs, random_like, vjp_of
from threadpoolctl import threadpool_info, threadpool_limits

import asap_ref as ar
from asap_ref.calibration.cluster import _of_any_size
from asap_ref.fast import threads
from asap_ref.support import presentation
from asap_ref.support.arrays import to_numpy
from asap_ref.support.held import Held
from asap_ref.support.shapes import kind_of

LARGE = np.random.default_rng(0).standard_normal((3, 8, 300, 16))  # 720,000 scores: several chunks, so threads
Q, K = np.random.default_rng(1).standard_normal((2, 20, 2, 6, 4))
FIT = {"n_slices": 3, "n_iter": 3}
IMAGES = np.random.default_rng(2).standard_normal((24, 8, 8)).astype("float32")
LABELS = np.arange(24) % 3
SMALL = ar.Architecture(patch=4, width=8, n_layers=1, n_heads=2, n_classes=3)
SETTINGS = ar.TrainingSettings(epochs=1, batch_size=12)


def whole_job():
    """Train, compile, report, predict, and an attention on threads: arrays in which any difference would show."""
    model = ar.Transformer.create(SMALL, ar.Attention("sinkhorn", {"n_iter": 3}))
    trained, _ = ar.train(model, IMAGES, LABELS, SETTINGS, label=None)
    compiled, _ = ar.compile_model(trained, [IMAGES], n_slices=3, quadratic=2)
    report = ar.fidelity_report(compiled, IMAGES)
    amortizer = ar.recalibrate(ar.fit_amortizer([(Q, K)], **FIT), [(K, Q)])
    ar.detect_drift(report, report)
    return [
        ar.predict(compiled, IMAGES),
        report.samples["output_error"],
        amortizer.weights,
        ar.softmax_attention(*LARGE),
    ]


@pytest.fixture(scope="module")
def expected():
    return whole_job()


@pytest.fixture
def _several_workers(monkeypatch):
    """Of ours and of BLAS, that there is something to restore: it may have one here."""
    monkeypatch.setenv("ASAP_REF_THREADS", "2")
    with threadpool_limits(2, user_api="blas"):
        yield


def close(found, expected):
    for x, y in zip(found, expected, strict=True):
        # BLAS may cut a product in another way while others are at work: rounding, through an epoch
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * np.abs(y).max())


# ------------------------------------------------------------------------------------- what is left as it was found


def blas_threads():
    return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]


def state_of_the_process():
    """Everything that a library may set for all others; with what other libraries show of theirs, where they are."""
    import matplotlib as mpl

    torch = importlib.import_module("torch") if find_spec("torch") else None  # it sets filters of its own: first
    state = {
        "random state of NumPy": repr(np.random.get_state()),  # noqa: NPY002 - the legacy state is the one of the process
        "random state of Python": random.getstate(),
        "filters of warnings": list(warnings.filters),
        "how warnings are shown": warnings.showwarning,
        "what NumPy does of overflow": np.geterr(),
        "how NumPy prints": repr(np.get_printoptions()),
        "BLAS threads": blas_threads(),
        "settings of matplotlib": {key: mpl.rcParams._get(key) for key in mpl.rcParams},
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "path of modules": list(sys.path),
        "handlers of signals": {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)},
        "hooks": (sys.excepthook, threading.excepthook, sys.getrecursionlimit(), sys.getswitchinterval()),
        "processors": os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
    }
    if torch is not None:
        state["random state of torch"] = torch.get_rng_state().tolist()
        state["modes of torch"] = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    if "dask" in sys.modules:
        import dask

        state["settings of Dask"] = dict(dask.config.config.get("distributed", {}).get("admin", {}))
    return state


def unchanged(before):
    after = state_of_the_process()
    assert before.keys() == after.keys()
    for what, value in before.items():
        assert after[what] == value, f"{what} changed"


@pytest.mark.usefixtures("_several_workers", "expected")  # done once: what other libraries do on import is theirs
def test_a_whole_job_leaves_the_process_as_it_was():
    before = state_of_the_process()
    whole_job()
    unchanged(before)


@pytest.mark.parametrize("module", ["numpy", "torch"])
def test_operators_leave_the_process_as_it_was_also_when_they_fail(module):
    pytest.importorskip(module, reason=f"{module} is not installed")
    xp = ar.array_module(module)
    before = state_of_the_process()
    for function, arguments, settings in OPERATORS.values():
        placed = convert(arguments, lambda x: xp.asarray(x.copy()))
        value, vjp = vjp_of(function)(**placed, **settings)
        vjp(map_arrays(xp.asarray, random_like(map_arrays(to_numpy, value))))
        broken = convert(arguments, lambda x: xp.asarray(x.copy() if x.dtype == bool else np.full_like(x, np.nan)))
        with pytest.raises((ValueError, FloatingPointError)):
            function(**broken, **settings)
    unchanged(before)


IMPORT = """
import os, random, signal, sys, threading, warnings
import numpy as np

def state():
    return {
        "filters": list(warnings.filters), "numpy": repr(np.random.get_state()), "python": random.getstate(),
        "errors": np.geterr(), "environment": dict(os.environ), "folder": os.getcwd(), "path": list(sys.path),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], "threads": threading.active_count(),
        "hooks": (sys.excepthook, threading.excepthook, warnings.showwarning), "printing": repr(np.get_printoptions()),
    }

before = state()
import asap_ref
print(sorted({"scipy.stats", "matplotlib", "sklearn", "torch", "jax", "dask", "ot"} & set(sys.modules)))
import matplotlib
looks = {key: matplotlib.rcParams._get(key) for key in matplotlib.rcParams}
import importlib, pkgutil
filters = list(warnings.filters)  # those of matplotlib and scikit-learn are theirs
for module in pkgutil.walk_packages(asap_ref.__path__, "asap_ref."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
after = state()
print([name for name in before if before[name] != after[name] and name != "filters"])
print(list(warnings.filters) == filters, "matplotlib.pyplot" in sys.modules)
print({key for key in looks if matplotlib.rcParams._get(key) != looks[key]} or "looks as before")
"""


def run(code, *flags, **environment):
    """Run code in a process of its own, and return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_importing_every_file_changes_nothing_and_the_package_asks_for_little():
    assert run(IMPORT) == ["[]", "[]", "True False", "looks as before"]


# --------------------------------------------------------------------------------------------- settings that are held


class Setting:
    """Stands for a setting of the process: the one that is held is 1."""

    def __init__(self, value):
        self.value = value

    @contextlib.contextmanager
    def of_one(self):
        before, self.value = self.value, 1
        yield
        self.value = before


def test_of_two_that_overlap_the_second_does_not_leave_behind_what_the_first_set():
    setting = Setting(2)
    held = Held(setting.of_one)
    held.__enter__()  # the first comes, the second comes, the first goes, the second goes
    held.__enter__()
    held.__exit__()
    assert setting.value == 1
    held.__exit__()
    assert setting.value == 2 and held.inside == 0


def test_a_setting_that_cannot_be_made_is_not_held():
    held = Held(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), held:
        pass
    assert held.inside == 0


def test_a_handler_of_signals_may_hold_what_it_interrupts():
    setting = Setting(2)

    def interrupted():
        with held:  # in the middle of making it, as if a signal had come
            pass
        return setting.of_one()

    held = Held(interrupted)
    with held:
        assert setting.value == 1
    assert setting.value == 2


def test_a_child_restores_what_its_parent_held():
    setting = Setting(2)
    held = Held(setting.of_one)
    with held:
        held.begin_anew()  # as in a forked child
        assert setting.value == 2
    assert setting.value == 2 and held.inside == 0


def overlapping(job, count=4):
    """Run a job on several threads, which begin together, ten times each."""
    together = threading.Barrier(count)

    def repeat(_):
        together.wait()
        return [job() for _ in range(10)]

    with ThreadPoolExecutor(count) as callers:
        return [result for results in callers.map(repeat, range(count)) for result in results]


def test_threads_that_draw_leave_the_look_of_others(tmp_path):
    import matplotlib as mpl

    before = {key: mpl.rcParams._get(key) for key in mpl.rcParams}
    overlapping(presentation.subplots)
    assert {key: mpl.rcParams._get(key) for key in mpl.rcParams} == before


def test_threads_that_calibrate_on_dask_leave_its_settings():
    dask = pytest.importorskip("dask", reason="needs Dask: pip install asap-ref[distributed]")
    key = "distributed.admin.large-graph-warning-threshold"
    before = dask.config.get(key, None)

    def hold():
        with _of_any_size:
            return dask.config.get(key)

    assert set(overlapping(hold)) == {"1 TiB"}
    assert dask.config.get(key, None) == before


# ------------------------------------------------------------------------------------------------------------ threads


@pytest.mark.parametrize("module", ["numpy", "torch"])
def test_every_operator_on_several_threads_at_once(module):
    pytest.importorskip(module, reason=f"{module} is not installed")
    xp = ar.array_module(module)

    def all_of_them():
        found = []
        for function, arguments, settings in OPERATORS.values():
            value, vjp = vjp_of(function)(**convert(arguments, lambda x: xp.asarray(x.copy())), **settings)
            cotangent = map_arrays(xp.asarray, random_like(map_arrays(to_numpy, value)))
            found += [to_numpy(x) for x in outputs((value, vjp(cotangent)))]
        return found

    alone = all_of_them()
    with ThreadPoolExecutor(4) as callers:
        for found in callers.map(lambda _: all_of_them(), range(4)):
            for x, y in zip(found, alone, strict=True):
                np.testing.assert_allclose(x, y, rtol=0, atol=1e-12 * max(1, np.abs(y).max()))


@pytest.mark.usefixtures("_several_workers")
def test_whole_jobs_on_several_threads_at_once(expected):
    before = blas_threads()
    with ThreadPoolExecutor(3) as callers:
        for found in callers.map(lambda _: whole_job(), range(3)):
            close(found, expected)
    assert blas_threads() == before


def test_what_one_thread_does_wrong_is_not_seen_by_another():
    """Whether a call is checked, and what NumPy makes of an overflow, belong to a thread."""
    with pytest.raises(ValueError, match="k contains NaN"):
        ar.softmax_attention(Q, K * np.nan, Q)
    with ThreadPoolExecutor(1) as other:
        with np.errstate(all="raise"):
            with pytest.raises(ValueError, match="k contains NaN"):
                other.submit(ar.softmax_attention, Q, K * np.nan, Q).result()
            assert other.submit(np.geterr).result() == np.geterr() | {"under": "ignore"} | dict.fromkeys(
                ("divide", "over", "invalid"), "warn"
            )
        assert kind_of(ar.array_namespace(Q), Q.dtype) == "float"


@pytest.mark.usefixtures("_several_workers")
def test_a_call_from_a_thread_of_the_pool_does_not_wait_for_others_of_it():
    """Two threads that wait for two more would wait for ever; the limit only ends that."""
    with ThreadPoolExecutor(1) as caller:
        nested = caller.submit(threads.spread, lambda i: threads.spread(lambda j: 10 * i + j, range(3)), range(4))
        assert nested.result(timeout=3600) == [[10 * i + j for j in range(3)] for i in range(4)]


AT_EXIT = """
import atexit, numpy as np
from asap_ref import softmax_attention
q = np.random.default_rng(0).standard_normal((8, 300, 16))
expected = softmax_attention(q, q, q)
atexit.register(lambda: print(np.array_equal(softmax_attention(q, q, q), expected)))
"""


def test_an_attention_may_be_asked_for_when_the_interpreter_ends():
    assert run(AT_EXIT, ASAP_REF_THREADS="2") == ["True"]


IN_A_HANDLER = """
import signal, time, numpy as np
from asap_ref import softmax_attention
q = np.random.default_rng(0).standard_normal((8, 300, 16))
expected, found = softmax_attention(q, q, q), []
random = np.random.default_rng(1)

def again():  # at any moment of a call
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.02))

def handle(*_):
    found.append(np.array_equal(softmax_attention(q, q, q), expected))
    again()

signal.signal(signal.SIGALRM, handle)
again()
while len(found) < 20:
    assert np.array_equal(softmax_attention(q, q, q), expected)
signal.setitimer(signal.ITIMER_REAL, 0)
print(all(found))
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that interrupt")
def test_a_handler_of_signals_may_call_what_it_interrupts():
    assert run(IN_A_HANDLER, ASAP_REF_THREADS="2", OPENBLAS_NUM_THREADS="1") == ["True"]


# ---------------------------------------------------------------------------------------------------------- processes


@pytest.mark.parametrize("method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow), "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # of fork, from Python 3.12 on
def test_a_process_started_in_any_way_gives_the_same_numbers(method, expected, monkeypatch):
    """The parent has threads of its own meanwhile, and may hold BLAS."""
    try:
        context = get_context(method)
    except ValueError:
        pytest.skip(f"this system does not {method}")
    if method == "fork" and {"jax", "torch"} & set(sys.modules):
        assert run(FORKED)[-1] == "True"  # neither survives a fork: from a process without them
        return
    monkeypatch.setenv("ASAP_REF_THREADS", "2")
    helpers = os.pathsep.join([*map(str, (Path(__file__).parent, Path(__file__).parents[1] / "helpers"))])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [helpers, os.environ.get("PYTHONPATH")])))
    with threads.blas_on_one_thread(), ProcessPoolExecutor(1, mp_context=context) as child:
        close(child.submit(elsewhere).result(), expected)


def elsewhere():
    """The job, and on several threads of the process."""
    first, *others = ThreadPoolExecutor(2).map(lambda _: whole_job(), range(2))
    close(others[0], first)
    return first


FORKED = """
import os
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from asap_ref import fit_amortizer, softmax_attention

q = np.random.default_rng(0).standard_normal((8, 300, 16))
batch = np.random.default_rng(1).standard_normal((2, 20, 2, 6, 4))

def job(_=0):
    return softmax_attention(q, q, q).sum() + fit_amortizer([tuple(batch)], n_slices=3).weights.sum()

os.environ["ASAP_REF_THREADS"] = "2"
expected = job()

def grandchild():
    with ThreadPoolExecutor(2) as callers:
        return all(np.isclose(found, expected, rtol=1e-9) for found in callers.map(job, range(3)))

def forked(work):
    child = os.fork()
    if child == 0:
        os._exit(0 if work() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

with ThreadPoolExecutor(2) as callers:  # a child of a process that computes, and a child of that child
    running = callers.map(job, range(4))
    print(forked(lambda: grandchild() and forked(grandchild)))
    list(running)
"""


def test_without_docstrings_and_asserts_it_is_the_same_package():
    """``python -OO``, as some ship programs."""
    code = (
        "import asap_ref as ar, numpy as np, asap_ref.cli; q = np.ones((2, 3, 4)); "
        "print(ar.sinkhorn_attention(q, q, q).sum())"
    )
    assert run(code, "-OO") == run(code) == ["24.0"]


def test_it_trains_where_there_is_no_stderr():
    """As under pythonw, or in a service."""
    code = """
import sys; sys.stderr = None
import numpy as np, asap_ref as ar
model = ar.Transformer.create(ar.Architecture(width=8, n_layers=1, n_heads=2), ar.Attention("softmax"))
_, history = ar.train(model, np.zeros((4, 8, 8)), np.zeros(4, int), ar.TrainingSettings(epochs=1))
print(len(history))
"""
    assert run(code) == ["1"]


# --------------------------------------------------------------------------------------------------------------- Dask


@pytest.fixture(scope="module")
def client():
    with cluster(n_workers=1, threads_per_worker=2, processes=False) as found:
        yield found


def on_a_thread(job):
    with ThreadPoolExecutor(1) as own:
        return own.submit(job).result()


def calibrated(client=None):
    return ar.fit_amortizer([(Q, K), (K, Q)], **FIT, client=client).weights


def from_within():
    """Calibrate on the cluster that this worker is of."""
    from distributed import worker_client

    with worker_client() as client:
        return calibrated(client)


@pytest.mark.usefixtures("_several_workers")
def test_a_worker_of_dask_may_do_it_on_a_thread_and_on_its_own_cluster(client, expected):
    before = blas_threads()
    jobs = [client.submit(on_a_thread, whole_job, pure=False) for _ in range(2)]
    for job in jobs:
        close(job.result(), expected)
    weights = calibrated()
    for job in (calibrated, from_within):
        close([client.submit(job, pure=False).result()], [weights])
    assert blas_threads() == before


@pytest.mark.usefixtures("_several_workers")
def test_threads_of_a_caller_share_a_client(client):
    with ThreadPoolExecutor(3) as callers:
        close(list(callers.map(lambda _: calibrated(client), range(3))), [calibrated()] * 3)


@pytest.mark.slow
def test_workers_that_are_processes_do_it_too(expected, monkeypatch):
    helpers = os.pathsep.join([*map(str, (Path(__file__).parent, Path(__file__).parents[1] / "helpers"))])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [helpers, os.environ.get("PYTHONPATH")])))
    with cluster(n_workers=2, threads_per_worker=2) as client:
        for job in [client.submit(on_a_thread, whole_job, pure=False) for _ in range(4)]:
            close(job.result(), expected)


# ------------------------------------------------------------------------------- modes that somebody else has switched


def of_torch(dtype):
    """Results of every operator on torch, under a mode that is on while it is called."""
    import torch

    def all_under(mode, requires_grad=False):
        found = {}
        for name, (function, arguments, settings) in OPERATORS.items():
            placed = convert(arguments, lambda x: torch.asarray(x if x.dtype == bool else x.astype(dtype)))
            with mode():
                value, vjp = vjp_of(function)(**placed, **settings)
            cotangent = map_arrays(torch.asarray, random_like(map_arrays(to_numpy, value)))
            with mode():
                found[name] = [
                    to_numpy(x) for x in outputs((value, vjp(cotangent), function(**placed, **settings)))
                ]
        return found

    return all_under


@contextlib.contextmanager
def torch_default(name):
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = {
    "autocast": lambda torch: torch.autocast("cpu", torch.bfloat16),
    "inference": lambda torch: torch.inference_mode(),
    "without gradients": lambda torch: torch.no_grad(),
    "float64 by default": lambda torch: torch_default("float64"),
    "float16 by default": lambda torch: torch_default("float16"),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_of_torch_changes_no_bit(mode):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install asap-ref[peers]")
    under = of_torch("float32")
    expected, found = under(contextlib.nullcontext), under(lambda: MODES[mode](torch))
    for name, results in expected.items():
        for x, y in zip(results, found[name], strict=True):
            assert x.dtype == y.dtype == "float32"
            np.testing.assert_array_equal(x, y, err_msg=name)


def test_a_model_under_autocast_gives_its_own_numbers():
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install asap-ref[peers]")
    xp = ar.array_module("torch")
    model = ar.Transformer.create(SMALL, ar.Attention("sinkhorn", {"n_iter": 3}), xp=xp)
    q, k = (xp.asarray(x.astype("float32")) for x in (Q, K))
    plain = [ar.train(model, IMAGES, LABELS, SETTINGS, label=None)[0], ar.fit_amortizer([(q, k)], **FIT).weights]
    with torch.autocast("cpu", torch.bfloat16):
        cast = [
            ar.train(model, IMAGES, LABELS, SETTINGS, label=None)[0],
            ar.fit_amortizer([(q, k)], **FIT).weights,
        ]
        logits = ar.predict(cast[0], IMAGES)
    np.testing.assert_array_equal(logits, ar.predict(plain[0], IMAGES))
    np.testing.assert_array_equal(cast[1], plain[1])


def test_what_numpy_is_told_to_do_of_overflow_and_warnings_changes_nothing(expected):
    """As a user does who looks for a NaN: exp of a large negative number is zero on purpose, and no mistake."""
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = whole_job()
        sharp = ar.sinkhorn_attention(30 * Q, 30 * K, Q, epsilon=0.01)
    close(found, expected)
    assert np.isfinite(sharp).all()


@pytest.mark.parametrize("name", [pytest.param("softmax masked", marks=pytest.mark.slow), "gelu"])
def test_what_jax_is_told_to_watch_for_changes_nothing(name):
    jax = pytest.importorskip("jax", reason="jax is not installed: pip install 'asap-ref[test]'")
    function, arguments, settings = OPERATORS[name]
    placed = convert(arguments, lambda x: jax.numpy.asarray(x if x.dtype == bool else x.astype("float32")))
    expected = function(**placed, **settings)
    for mode in (jax.debug_nans(True), jax.numpy_dtype_promotion("strict"), jax.enable_x64(True)):
        with mode:
            found = function(**placed, **settings)
        assert found.dtype == "float32"
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
