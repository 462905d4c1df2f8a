"""What docstrings promise holds at any scale, offset, epsilon and dtype, where rounding is not small.

Rows of a plan are exact; potentials are feasible and tight; a weighted side ends at level one; distances do not cancel.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import qkv

import asap_ref as ar
from asap_ref.method import attention as readable
from asap_ref.method.potentials import kantorovich_potentials_1d_vjp
from asap_ref.rivals.initial_duals import initial_attention
from asap_ref.rivals.one_sided import one_sided_attention
from asap_ref.support.arrays import array_module, to_numpy

Q, K = qkv(1, 1, n=9, m=9, d=4)[:2]
EPSILONS = st.sampled_from([1e-9, 1e-7, 1e-4, 1e-2, 1.0, 1e2, 1e6])
SCALES = st.sampled_from([1e-6, 1e-2, 1.0, 10.0, 1e3])
OFFSETS = st.sampled_from([0.0, 1.0, 1e3])
DTYPES = st.sampled_from(["float32", "float64"])


def problem(dtype, scale, offset):
    """Queries and keys at a scale, away from zero; the identity as values, so that the output is the plan."""
    q, k = ((scale * (x + offset)).astype(dtype) for x in (Q, K))
    return q, k, np.broadcast_to(np.eye(9, dtype=dtype), (1, 1, 9, 9))


@given(dtype=DTYPES, scale=SCALES, offset=OFFSETS, epsilon=EPSILONS)
@settings(max_examples=60, deadline=None)
def test_rows_are_exact(dtype, scale, offset, epsilon):
    """A sum of nine numbers between 0 and 1 is rounded, nothing else: 9 units in the last place, and as many again."""
    q, k, v = problem(dtype, scale, offset)
    amortizer = ar.Amortizer((ar.Slices(np.eye(4)),), np.full((1, 4), 0.3), epsilon=epsilon)
    S = ar.attention_scores(q, k)
    given = {"epsilon": epsilon}
    plans = {
        "sinkhorn and transport_plan": ar.transport_plan(S, ar.sinkhorn(S, n_iter=3, **given), **given),
        "two-sided": ar.transport_plan(S, ar.two_sided_c_transform(S, q[..., 0], **given), **given),
        "vjp": ar.sinkhorn_attention_vjp(q, k, v, n_iter=3, **given)[0],
        "one-sided": ar.one_sided_attention(q, k, v, amortizer),
        "one-sided, readable": one_sided_attention(q, k, v, amortizer),
    }
    for home in (ar, readable):
        plans[f"sinkhorn {home.__name__}"] = home.sinkhorn_attention(q, k, v, n_iter=3, **given)
        plans[f"asap {home.__name__}"] = home.asap_attention(q, k, v, amortizer)
    for form in (ar.initial_attention, initial_attention):
        plans[f"initial {form.__qualname__}"] = form(q, k, v, start="sorting", **given)
    for name, plan in plans.items():
        off = np.abs(plan.sum(-1, dtype="float64") - 1).max()
        assert plan.dtype == dtype and off <= 20 * np.finfo(dtype).eps, (name, off)


@given(
    dtype=DTYPES,
    scale=SCALES,
    offset=st.sampled_from([0.0, 1e2, 1e4, -1e6]),
    m=st.sampled_from([8, 5]),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_squared_potentials_do_not_see_where_zero_is(dtype, scale, offset, m, weighted, seed):
    rng = np.random.default_rng(seed)
    x, y = ((scale * rng.standard_normal(size) + offset).astype(dtype) for size in (8, m))
    weights = (
        {"x_weights": rng.integers(0, 3, 8) + 0.5, "y_weights": rng.integers(0, 3, m) + 0.5} if weighted else {}
    )
    phi, psi = ar.kantorovich_potentials_1d(
        x, y, cost="sqeuclidean", **{name: w.astype(dtype) for name, w in weights.items()}
    )
    X, Y = (z.astype("float64") - offset for z in (x, y))  # exact: what was drawn is float64, and near the offset
    cost = np.subtract.outer(X, Y) ** 2 / 2
    rounding = 64 * np.finfo(dtype).eps * cost.max()
    assert np.all(phi[:, None].astype("float64") + psi <= cost + rounding)
    a, b = weights.get("x_weights", np.ones(8)), weights.get("y_weights", np.ones(m))
    nearby = ar.kantorovich_potentials_1d(X, Y, cost="sqeuclidean", x_weights=a, y_weights=b)
    value, right = (
        a @ f / a.sum() + b @ g / b.sum() for f, g in ((phi.astype("float64"), psi.astype("float64")), nearby)
    )
    assert abs(value - right) <= rounding


def test_gradients_of_squared_potentials_do_not_see_where_zero_is():
    rng = np.random.default_rng(0)
    x, y, d_phi, d_psi = rng.integers(-99, 99, (4, 8)) / 8.0  # exact at the offset, too
    for m in (8, 6):
        near, far = (
            kantorovich_potentials_1d_vjp(x + offset, y[:m] + offset, cost="sqeuclidean")[1]((d_phi, d_psi[:m]))
            for offset in (0.0, 2.0**40)
        )
        for expected, found in zip(near, far, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("module", ["jax", "torch", "array_api_strict"])
def test_weighted_potentials_of_any_module_are_those_of_numpy(module):
    """Levels end at one: a division may not say so (one row in ten does not on JAX)."""
    xp, rng = array_module(module), np.random.default_rng(0)
    x, y = rng.standard_normal((2, 60, 4)).astype("float32")
    a = rng.random((60, 4)).astype("float32")
    expected = ar.kantorovich_potentials_1d(x, y, x_weights=a)
    found = ar.kantorovich_potentials_1d(*map(xp.asarray, (x, y)), x_weights=xp.asarray(a))
    for e, f in zip(expected, found, strict=True):
        np.testing.assert_allclose(to_numpy(f), e, rtol=0, atol=2e-5 * np.abs(e).max())


@given(offset=st.sampled_from([0.0, 64.0, 4096.0]), dtype=DTYPES)
@settings(max_examples=10, deadline=None)
def test_sliced_attention_does_not_see_where_zero_is(offset, dtype):
    """Distances are sums of squared differences, sorts take differences: eighths survive these offsets."""
    q, k = (np.round(8 * x) / 8 for x in (Q, K))
    near, far = (ar.sliced_attention(*(x.astype(dtype) for x in (q + o, k + o, K))) for o in (0.0, offset))
    np.testing.assert_allclose(far, near, rtol=0, atol=1e-5 if dtype == "float32" else 1e-10)
