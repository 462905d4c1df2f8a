"""The kernels as any implementation: the oracle's cases, and what fuzzing draws, run through their emulation."""

from types import SimpleNamespace

import battery
import numpy as np
import pytest

from asap_ref import oracle
from asap_ref.fast.kernels.launch import Problems, contiguous
from asap_ref.oracle import reference

OPERATORS = ("lse", "attend", "softmax_attention", "sinkhorn_attention", "asap_attention")


def dual_of(problems, dual):
    """A dual as the kernels read it: without gaps, in the dtype that is computed in."""
    return contiguous(problems.xp.astype(dual, getattr(problems.xp, problems.real)))


def lse(q, k, query_dual, query_mask=None, key_mask=None, *, epsilon):
    """The kernel's half step has the mass onto keys alone: this is the one onto queries, with the sides exchanged."""
    problems = Problems(k, q, None, key_mask, query_mask)
    return problems.xp.astype(problems.query_dual(dual_of(problems, query_dual), epsilon), q.dtype)


def attend(q, k, v, key_dual, query_mask=None, key_mask=None, *, epsilon):
    problems = Problems(q, k, v, query_mask, key_mask)
    return problems.attend(dual_of(problems, key_dual), epsilon)


def on(device):
    """The adapter: functions of the package, on arrays of the device, where they are kernels."""
    return SimpleNamespace(
        __name__="the kernels",
        to_array=lambda x, dtype: device.asarray(x.astype(battery.numpy_dtype(dtype))),
        lse=lse,
        attend=attend,
        softmax_attention=reference.softmax_attention,
        softmax_attention_vjp=reference.softmax_attention_vjp,
        sinkhorn_attention=reference.sinkhorn_attention,
        sinkhorn_attention_vjp=reference.sinkhorn_attention_vjp,
        asap_attention=reference.asap_attention,
    )


def small(case):
    """What the emulator, which runs thread by thread, gets through in a moment."""
    return case.path is not None


@pytest.mark.parametrize("operator", OPERATORS)
def test_kernels_pass_the_stored_cases(device, operator):
    for case in filter(small, oracle.cases(operator, version=2)):
        report = oracle.run_case(on(device), case, dtype="float32")
        assert report.passed, report


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_kernels_pass_version_2_and_what_fuzzing_draws(device, operator, dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    report = oracle.check_module(on(device), operator=operator, dtype=dtype, version=2)
    assert report.passed, str(report)
    report = oracle.fuzz(on(device), operator=operator, dtype=dtype, rounds=6, seed=2)
    assert report.passed, str(report)


def test_the_oracle_would_notice_a_kernel_that_forgets(device):
    """A mask of keys that is not looked at, as one fault stands for all."""
    module = on(device)
    module.attend = lambda *args, key_mask=None, **named: attend(*args, **named)
    reports = [oracle.run_case(module, case) for case in oracle.cases("attend", version=2) if small(case)]
    assert any(not report.passed for report in reports)
    assert np.all([report.passed for report in reports if "key_mask" not in report.case.inputs])
