"""Same seed, same machine, same bits; another number of threads, the same numbers up to rounding."""

import subprocess
import sys

import numpy as np
import pytest
from problems import qkv
from threadpoolctl import threadpool_limits

import asap_ref as ar
from asap_ref.fast import threads

FINGERPRINT = """
import hashlib
import numpy as np
from asap_ref import asap_attention_vjp, fit_amortizer, slice_directions

q, k, v = np.random.default_rng(0).standard_normal((3, 20, 2, 12, 4))
digest = hashlib.sha256()
for options in ({}, {"objective": "kl"}, {"quadratic": 3, "moments": 2}, {"candidates": 9}):
    amortizer = fit_amortizer([(q, k)], **{"n_slices": 5, "n_iter": 4, "quadratic": 2, **options})
    out, vjp = asap_attention_vjp(q, k, v, amortizer)
    for x in (amortizer.family("slices").directions, amortizer.weights, out, *vjp(out)):
        digest.update(np.ascontiguousarray(x).tobytes())
print(digest.hexdigest())
"""


def test_two_processes_give_the_same_bits():
    command = [sys.executable, "-c", FINGERPRINT]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert len(first.strip()) == 64
    assert first == second


@pytest.mark.parametrize("name", ["softmax_attention", "sinkhorn_attention", "asap_attention", "sliced_attention"])
def test_threads_of_ours_change_no_bit_and_those_of_blas_only_the_rounding(name, monkeypatch):
    q, k, v = qkv(6, 2, n=40, d=8)
    options = {"amortizer": ar.fit_amortizer([(q, k)], n_slices=5)} if name == "asap_attention" else {}
    if name == "sliced_attention":
        options = {"hard": True}  # soft sorting at the default temperature magnifies the last bit of a projection

    def results():
        out, vjp = getattr(ar, f"{name}_vjp")(q, k, v, **options)
        return [getattr(ar, name)(q, k, v, **options), out, *vjp(out)]

    with threadpool_limits(1):
        monkeypatch.setattr(threads, "worker_count", lambda: 1)
        alone = results()
        monkeypatch.setattr(threads, "worker_count", lambda: 3)
        for x, y in zip(alone, results(), strict=True):
            np.testing.assert_array_equal(x, y)
    with threadpool_limits(2):
        for x, y in zip(alone, results(), strict=True):
            # sums of at most 40 terms in another order, through 41 half steps
            np.testing.assert_allclose(y, x, rtol=0, atol=1e-12 * np.abs(x).max())


def test_the_order_of_the_batches_is_the_order_of_a_sum():
    q, k = np.random.default_rng(0).standard_normal((2, 12, 2, 8, 4))
    batches = [(q[i : i + 4], k[i : i + 4]) for i in (0, 4, 8)]
    weights = [ar.fit_amortizer(order, n_slices=4).weights for order in (batches, batches[::-1])]
    np.testing.assert_allclose(weights[1], weights[0], rtol=0, atol=1e-10 * np.abs(weights[0]).max())
