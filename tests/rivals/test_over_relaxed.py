"""Over-relaxed truncated Sinkhorn: gradients, its fast form, and what it is against the plain one."""

import numpy as np
import pytest
from gradients import check_vjp
from problems import masks, qkv

from asap_ref import over_relaxed_attention, sinkhorn_attention
from asap_ref.rivals import over_relaxed as definition

QUERY_MASK, KEY_MASK = (mask[:, None] for mask in masks(2, 6, 8))
MASKED = {"query_mask": QUERY_MASK, "key_mask": KEY_MASK}
STARTS = ("softmax", "zero", "gaussian", "sorting")


@pytest.mark.parametrize("options", [{}, MASKED], ids=["all", "masked"])
@pytest.mark.parametrize("start", STARTS)
def test_gradients(start, options):
    settings = {"initial": start, "n_iter": 2, "omega": 1.6, "epsilon": 0.7, **options}
    check_vjp(
        lambda *a: definition.over_relaxed_attention(*a, **settings),
        lambda *a: definition.over_relaxed_attention_vjp(*a, **settings),
        qkv(2, 3, n=6, m=8, d=4, p=5),
    )


def test_omega_one_is_the_teacher_cut_short():
    q, k, v = qkv(2, 3, n=6, m=8, d=4)
    found = over_relaxed_attention(q, k, v, n_iter=3, omega=1.0, epsilon=0.7, **MASKED)
    expected = sinkhorn_attention(q, k, v, n_iter=4, epsilon=0.7, **MASKED)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1.0, 6.0, 100.0])
@pytest.mark.parametrize("options", [{}, MASKED], ids=["all", "masked"])
@pytest.mark.parametrize("start", STARTS)
def test_fast_is_readable(start, options, size):
    """Scores up to 1e4 leave the scaling form, which is then rescued in the log domain."""
    q, k, v = qkv(2, 3, n=6, m=8, d=4, size=size)
    found, expected = (
        home(q, k, v, initial=start, **options)
        for home in (over_relaxed_attention, definition.over_relaxed_attention)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 if size == 100 else 1e-11)


def test_relaxation_pays():
    """Four relaxed iterations are nearer to the converged plan than twice as many plain ones are to four."""
    q, k, v = qkv(4, 2, n=40, d=8, size=1.6)
    teacher = sinkhorn_attention(q, k, v, n_iter=500)
    relaxed, plain = (
        np.linalg.norm(over_relaxed_attention(q, k, v, n_iter=4, omega=omega) - teacher) for omega in (1.7, 1.0)
    )
    assert relaxed < 0.5 * plain


@pytest.mark.parametrize(
    ("omega", "start", "message"), [(2.0, "zero", "omega must be below 2"), (1.5, "x", "initial")]
)
def test_wrong_settings_are_refused(omega, start, message):
    with pytest.raises(ValueError, match=message):
        over_relaxed_attention(*qkv(2, n=6, d=4), omega=omega, initial=start)
