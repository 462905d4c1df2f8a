"""The sums of calibration in their fast form: those of the definition, on every module, whatever the scores."""

import os
import subprocess
import sys

import numpy as np
import pytest
from backends import BACKENDS, CASES
from problems import masks, qkv

from asap_ref import Cumulants, Moments, Quadratic, Slices, slice_directions
from asap_ref.calibration import kl
from asap_ref.fast import regression as fast
from asap_ref.fast import scaling
from asap_ref.method import regression as readable
from asap_ref.support.trees import place_like

FAST = {"regression": fast.regression_statistics, "kl": kl.fast_kl_statistics}
DEFINITIONS = {"regression": readable.regression_statistics, "kl": kl.kl_statistics}
PADDING = {
    "none": {},
    "both": dict(zip(("query_mask", "key_mask"), (x[:, None] for x in masks(7, 12, 9)), strict=True)),
    "keys alone": {"key_mask": masks(7, 12, 9)[1][:, None]},
    "no key": {"key_mask": np.arange(7)[:, None, None] > np.zeros(9, int)},  # of the first sequence
}


def families(per_head=False, d=4, heads=3):
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((heads, d, 5)) if per_head else slice_directions(d, 5)
    basis = rng.standard_normal((heads, d, 2)) if per_head else np.eye(d)[:, :2]
    return (Slices(directions), Cumulants(), Quadratic(basis), Moments(basis))


def agree(found, expected, tolerance):
    """In the largest sum of each kind; counts are equal."""
    assert found.count == expected.count
    for name in ("gram", "cross", "square"):
        a, b = getattr(found, name), getattr(expected, name)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), name


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("n_iter", [1, 4])
def test_the_fast_sums_are_those_of_the_definition(name, padding, per_head, n_iter):
    q, k, _ = qkv(7, 3, n=12, m=9, d=4)
    settings = {"n_iter": n_iter, "epsilon": 0.7, **PADDING[padding]}
    found, expected = (home[name](q, k, families(per_head), **settings) for home in (FAST, DEFINITIONS))
    agree(found, expected, 1e-12)


@pytest.mark.parametrize("statistics", [fast.regression_statistics, readable.regression_statistics])
def test_a_teacher_without_iterations_is_refused(statistics):
    """It is softmax: there is no dual before its last iteration to be fitted."""
    q, k, _ = qkv(2, 3, n=5, d=4)
    with pytest.raises(ValueError, match="n_iter must be at least 1, got 0"):
        statistics(q, k, families(), n_iter=0)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sharp_scores_go_through_the_log_domain(name, dtype, monkeypatch):
    q, k, _ = (5 * x.astype(dtype) for x in qkv(4, 2, n=10, d=4))
    rescued = []
    log_domain = scaling.entropic_c_transform
    monkeypatch.setattr(
        scaling, "entropic_c_transform", lambda *args, **more: rescued.append(1) or log_domain(*args, **more)
    )
    monkeypatch.setitem(scaling.BIG, dtype, 1.5)  # so that nearly every half step leaves the range
    placed = place_like(q, families(heads=2))
    found, expected = (home[name](q, k, placed, n_iter=6) for home in (FAST, DEFINITIONS))
    assert rescued
    # kl is a difference of two products, of which sharp plans leave little
    agree(found, expected, {"float32": 1e-6, "float64": 1e-14}[dtype] * (1000 if name == "kl" else 1))


@pytest.mark.parametrize(
    ("name", "backend", "dtype"),
    [
        # JAX compiles each step anew: ten seconds
        pytest.param(name, *case, marks=[pytest.mark.slow] if longer else [])
        for name in FAST
        for case in CASES
        for longer in [BACKENDS[case[0]].module == "jax"]
    ],
)
def test_every_module_gives_the_same_sums(name, backend, dtype):
    if reason := BACKENDS[backend].missing():
        pytest.skip(reason)
    q, k, _ = qkv(3, 2, n=8, d=4)
    expected = DEFINITIONS[name](q, k, families(heads=2), n_iter=3)
    with BACKENDS[backend](dtype) as (_, place):
        q, k = place(q), place(k)
        found = FAST[name](q, k, place_like(q, families(heads=2)), n_iter=3)
    agree(found, expected, {"float32": 2e-5, "float64": 1e-12}[dtype])


@pytest.mark.parametrize("name", FAST)
def test_an_empty_batch_has_empty_sums(name):
    q, k, _ = qkv(0, 3, n=8, d=4)
    found = FAST[name](q, k, families(), n_iter=3)
    assert found.count == 0 and not found.gram.any() and found.gram.shape == (3, 35, 35)


@pytest.mark.parametrize("name", FAST)
def test_what_is_wrong_is_said_as_by_any_operator(name):
    q, k, _ = qkv(2, 3, n=8, d=4)
    summed = FAST[name]
    with pytest.raises(ValueError, match="k contains NaN"):
        summed(q, np.where(k == k[0, 0, 0, 0], np.nan, k), families())
    with pytest.raises(ValueError, match="expected"):
        summed(q, k[:, :2], families())
    with pytest.raises(TypeError, match="query_mask must be boolean"):
        summed(q, k, families(), query_mask=np.ones((2, 1, 8)))


BITS = """
import hashlib
from test_fast_statistics import FAST, families, qkv
q, k, _ = qkv(20, 3, n=70, d=4)
for summed in FAST.values():
    print(hashlib.sha256(summed(q, k, families(), n_iter=3).gram.tobytes()).hexdigest())
"""


def test_the_number_of_threads_changes_no_bit():
    found = set()
    for threads in ("1", "3"):
        environment = {**os.environ, "ASAP_REF_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)}
        found.add(
            subprocess.run(
                [sys.executable, "-c", BITS], env=environment, capture_output=True, text=True, check=True
            ).stdout
        )
    assert len(found) == 1
