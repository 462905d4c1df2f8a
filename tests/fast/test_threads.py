"""Threads leave the process as they found it, whoever else calls, and whatever becomes of the process."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from asap_ref import softmax_attention
from asap_ref.fast import threads

SHAPE = (8, 300, 16)  # 720,000 scores: several chunks, so that threads are used


def blas_threads():
    return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]


@pytest.fixture(autouse=True)
def _several_workers(monkeypatch):
    """Of ours and of BLAS, that there is something to restore: it may have one here."""
    monkeypatch.setenv("ASAP_REF_THREADS", "2")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")  # of processes that are started
    threads._blas.cache_clear()  # a library of BLAS that a test has loaded since was not found then
    with threadpool_limits(2, user_api="blas"):
        yield


def test_concurrent_callers_leave_blas_its_threads():
    q, k, v = np.random.default_rng(0).standard_normal((3, *SHAPE))
    before, expected = blas_threads(), softmax_attention(q, k, v)
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda _: softmax_attention(q, k, v), range(12)))
    assert blas_threads() == before
    for out in found:  # BLAS may cut a product in another way while others are at work: rounding
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)


def test_the_first_in_saves_the_limits_and_the_last_out_restores_them():
    before, hold = blas_threads(), threads.blas_on_one_thread()
    with hold:
        with hold:
            assert set(blas_threads()) <= {1}
        assert set(blas_threads()) <= {1}
    assert blas_threads() == before


def test_an_error_on_a_thread_leaves_blas_its_threads():
    before = blas_threads()
    with pytest.raises(ZeroDivisionError):
        threads.spread(lambda piece: 1 / piece, [1, 0, 2])
    assert blas_threads() == before


FORK = """
import os
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits
from asap_ref import softmax_attention
from asap_ref.fast import threads

def blas():
    return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]

q, k, v = np.random.default_rng(0).standard_normal((3, 8, 300, 16))
before, expected = blas(), softmax_attention(q, k, v)
held = os.environ["HELD"] == "yes"
with threads._blas_on_one_thread if held else open(os.devnull):
    child = os.fork()
    if child == 0:
        same = np.array_equal(softmax_attention(q, k, v), expected) and blas() == before
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("held", ["no", "yes"])
def test_a_forked_child_has_threads_of_its_own(held):
    """A child that waits for threads of its parent waits for ever; the limit only ends that."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK],
        capture_output=True,
        text=True,
        check=True,
        timeout=3600,
        env=os.environ | {"HELD": held},
    )
    assert done.stdout.strip() == "0"
