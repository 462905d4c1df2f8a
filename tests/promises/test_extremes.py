"""Input of extreme scale, ties, denormals, odd memory layouts: a finite result, or an error that says why not."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import OPERATORS, convert, outputs, random_like, vjp_of
from problems import qkv
from tallies import ANY_SCALE, ANY_SIZE, CALLS, FINITE, OF_MEMORY, REFUSED, SAME, note, refused

import asap_ref as ar
from asap_ref.calibration import objectives
from asap_ref.fidelity import diagnostics

SCALES = {"float64": (-323, 300), "float32": (-45, 37)}  # powers of ten: from denormals to the largest numbers


def scaled(arguments, power, dtype, ties):
    def change(x):
        if x.dtype == bool:
            return x
        with np.errstate(under="ignore"):
            return ((np.round(x) if ties else x) * 10.0**power).astype(dtype)

    return convert(arguments, change)


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(SCALES)), st.data(), st.booleans())
def test_any_scale_gives_finite_numbers_or_says_why_not(name, dtype, data, ties):
    function, arguments, options = OPERATORS[name]
    power = data.draw(st.integers(*SCALES[dtype]))
    arguments = scaled(arguments, power, dtype, ties)
    before = convert(arguments, np.copy)
    try:
        value, vjp = vjp_of(function)(**arguments, **options)
        results = value, function(**arguments, **options), vjp(random_like(value))
        reason = None
    except (FloatingPointError, ValueError) as error:
        results, reason = (), str(error)
    if reason is not None:
        # numbers of a usual size, and tiny ones, always work; but weights may all vanish, and duals that were scaled
        # and rounded belong to other scores: exp(1.5 * 10 / 0.7) is still a float32 number
        assert power > (1 if name.startswith("plan") else 2) or "weights must not sum to zero" in reason, reason
        assert re.search("overflows float(32|64)|contains infinity|must not sum to zero", reason), reason
    for x in outputs(results):
        assert np.isfinite(x).all()
        assert x.dtype == dtype
    note(ANY_SCALE, FINITE if results else REFUSED)
    for old, new in zip(outputs(tuple(before.values())), outputs(tuple(arguments.values())), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "name", ["softmax_attention", "sinkhorn_attention", "sliced_attention", "initial_attention"]
)
@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(1, 7),
    st.floats(-8, 3),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_an_output_lies_among_its_values(name, n, m, power, ties, seed):
    """Rows of a plan are weights that sum to one, whatever the scores: no output leaves the range of its values."""
    q, k, v = qkv(n=n, m=m, size=10**power, seed=seed)
    if ties:
        q, k = np.round(q), np.round(k)
    v = v / 10**power
    options = {"hard": True} if name == "sliced_attention" else {}
    out = getattr(ar, name)(q, k, v, **options)
    slack = 1e-12 * np.abs(v).max()  # rounding of a sum of m terms
    assert (out >= v.min(axis=0) - slack).all() and (out <= v.max(axis=0) + slack).all()
    note(ANY_SIZE, FINITE)


ATTENTIONS = {
    "softmax": {},
    "sinkhorn": {"n_iter": 0},
    "one-sided": {"amortizer": ar.Amortizer((ar.Slices(np.eye(4)),), np.zeros((1, 4)))},
    "dual-softmax": {},
    "over-relaxed": {},
    "sliced": {},
}


@pytest.mark.parametrize("backend", ["numpy", "array_api_strict"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_scores_that_all_overflow_are_an_error_and_not_zeros(name, masked, backend):
    """A row whose scores are all -inf has no softmax; that of a query without a key is zero."""
    xp, attention = ar.array_module(backend), ar.Attention(name, ATTENTIONS[name])
    q, k, v = (xp.full((1, 1, 3, 4), x, dtype=xp.float32) for x in (3e19, -3e19, 1.0))
    mask = {"key_mask": xp.asarray([True, True, False])} if masked else {}
    for form in (attention, attention.vjp):
        with pytest.raises(FloatingPointError, match="overflows"):
            form(q, k, v, **mask)


def test_a_plan_whose_scores_all_overflow_is_an_error_and_not_zeros():
    S, duals = np.full((3, 3), -3e19, np.float32), ar.Duals(*np.zeros((2, 3), np.float32))
    with pytest.raises(FloatingPointError, match="overflows"):
        ar.transport_plan(S, duals, epsilon=1e-25)


# ------------------------------------------------------------------------------------------------------- memory


class Labelled(np.ndarray):
    """A subclass that changes nothing, as many libraries make them."""


LAYOUTS = {
    "reversed": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1] if x.ndim else x,
    "every other": lambda x: np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x,
    "fortran": lambda x: np.asfortranarray(x) if x.ndim else x,
    "read only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "subclass": lambda x: x.view(Labelled),
    "big endian": lambda x: x if x.dtype == bool else x.astype(x.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_the_layout_of_memory_does_not_matter(name, layout):
    function, arguments, options = OPERATORS[name]
    there = convert(arguments, LAYOUTS[layout])
    expected, expected_vjp = vjp_of(function)(**arguments, **options)
    value, vjp = vjp_of(function)(**there, **options)
    cotangent = random_like(expected)
    got = outputs((value, vjp(cotangent), function(**there, **options)))
    for x, y in zip(outputs((expected, expected_vjp(cotangent), expected)), got, strict=True):
        # matrix products add up in another order for another layout
        np.testing.assert_allclose(y, x, rtol=0, atol=1e-11 * max(np.abs(x).max(), 1))
    note(OF_MEMORY, SAME)


@pytest.mark.parametrize("kind", [np.ma.MaskedArray, np.matrix])
@pytest.mark.parametrize("name", OPERATORS)
def test_arrays_whose_arithmetic_differs_are_refused(name, kind):
    function, arguments, options = OPERATORS[name]
    key = next(key for key, x in arguments.items() if isinstance(x, np.ndarray))
    other = arguments[key].reshape(-1, arguments[key].shape[-1]).view(kind)
    with refused(CALLS, TypeError, match=f"{key} must be an array, got (MaskedArray|matrix)"):
        function(**{**arguments, key: other}, **options)


# ------------------------------------------------------------------------------- wrong calls of what is not above

Q, K, V = qkv(2, 1, n=3, d=4)
P = ar.transport_plan(Q @ K.mT, ar.sinkhorn(Q @ K.mT))
F = Q[..., 0]
AMORTIZER = ar.fit_amortizer([(Q, K)], n_slices=2)
ONE = np.ones(3)
fit = ar.fit_amortizer

WRONG = [
    (lambda: ar.marginal_error(P[0, 0, 0]), ValueError, "plan has shape"),
    (lambda: ar.marginal_error(P, query_mask=F), TypeError, "query_mask must be boolean"),
    (lambda: diagnostics.sink_score(P.astype(int)), TypeError, "plan must be real floating point"),
    (lambda: diagnostics.sink_score(P * np.nan), ValueError, "plan contains NaN"),
    (lambda: diagnostics.attention_entropy(P[..., :0]), ValueError, "axis m must not be empty"),
    (lambda: diagnostics.attention_entropy(P.tolist()), TypeError, "plan must be an array, got list"),
    (lambda: diagnostics.rank_residual(Q[..., :0, :]), ValueError, "axis n must not be empty"),
    (lambda: diagnostics.rank_residual(Q, mask=F > 9), None, 0.0),
    (lambda: diagnostics.rank_residual(Q, mask=F), TypeError, "mask must be boolean"),
    (lambda: diagnostics.equivalent_iterations(P, P, P, most=0), ValueError, "most must be at least 1"),
    (lambda: diagnostics.equivalent_iterations(P, P, P[..., :2]), ValueError, "reference has shape"),
    (lambda: diagnostics.equivalent_iterations(P, P, P, epsilon=0), ValueError, "epsilon must be positive"),
    (
        lambda: ar.initial_dual(Q, K, start="warm"),
        ValueError,
        "start must be one of 'zero', 'gaussian', 'sorting'",
    ),
    (lambda: ar.initial_dual(Q, K, epsilon=-1), ValueError, "epsilon must be positive"),
    (lambda: ar.initial_dual(Q, K[..., :2]), ValueError, "with d = 4 as in q"),
    (lambda: ar.initial_dual(Q, K, key_mask=np.tri(3, dtype=bool)), ValueError, "causal"),
    (lambda: ar.initial_attention(Q, K, V.astype("f4")), TypeError, "must share one dtype"),
    (lambda: ar.one_sided_attention(Q, K, V, None), TypeError, "amortizer must be an Amortizer, .* got NoneType"),
    (
        lambda: ar.one_sided_attention(Q[:, [0, 0]], K[:, [0, 0]], V[:, [0, 0]], AMORTIZER),
        ValueError,
        "weights has",
    ),
    (lambda: ar.asap_attention(Q, K, V, "asap"), TypeError, "amortizer must be an Amortizer, .* got str"),
    (lambda: AMORTIZER.predict(Q[..., :3], K[..., :3]), ValueError, "directions has shape"),
    (lambda: AMORTIZER.predict(Q, K, query_mask=np.ones((2, 2), bool)), ValueError, "query_mask has shape"),
    (lambda: ar.soft_sort(F, temperature=0), ValueError, "temperature must be positive"),
    (lambda: ar.soft_sort(F, temperature="cold"), TypeError, "temperature must be a number"),
    (lambda: ar.soft_sort(F[..., :0]), ValueError, "axis n must not be empty"),
    (lambda: ar.sliced_attention(Q, K, V, slices_at_once=0), ValueError, "slices_at_once must be at least 1"),
    (lambda: ar.sliced_attention(Q, K, V, inverse_temperature=-1), ValueError, "inverse_temperature must be"),
    (lambda: ar.sliced_attention(Q, K, V, Q[0, 0, :, :2]), ValueError, "directions"),
    (lambda: ar.sliced_potentials(Q, K, np.ones((3, 2))), ValueError, r"directions has .*expected \(d, L\)"),
    (
        lambda: ar.sliced_potentials(Q, K, np.ones((4, 2), int)),
        TypeError,
        "directions must be real floating point",
    ),
    (lambda: ar.sliced_potentials(Q, K, np.ones(4)), ValueError, "directions has shape"),
    (lambda: ar.slice_directions(0, 3), ValueError, "dim must be at least 1"),
    (lambda: ar.slice_directions(3, 1.5), TypeError, "n_slices must be an integer"),
    (lambda: ar.slice_directions(3, 3, kind="random"), ValueError, "kind must be one of"),
    (
        lambda: ar.kantorovich_potentials_1d(ONE, ONE, x_weights=-ONE),
        ValueError,
        "x_weights must be .* at least 0",
    ),
    (
        lambda: ar.kantorovich_potentials_1d(ONE, ONE, y_weights=0 * ONE),
        ValueError,
        "y_weights must not sum to zero",
    ),
    (
        lambda: ar.kantorovich_potentials_1d(ONE, ONE, x_weights=np.inf * ONE),
        ValueError,
        "x_weights must be finite",
    ),
    (lambda: ar.kantorovich_potentials_1d(ONE, ONE, x_weights=ONE[:2]), ValueError, r"x_weights has shape \(2,\)"),
    (lambda: ar.kantorovich_potentials_1d(ONE, ONE, x_mask=ONE), TypeError, "x_mask must be boolean"),
    (lambda: ar.kantorovich_potentials_1d(ONE, ONE, cost="l1"), ValueError, "cost must be one of 'bilinear'"),
    (lambda: ar.kantorovich_potentials_1d(ONE, ONE[:0]), ValueError, "axis m must not be empty"),
    (
        lambda: ar.amortized_query_dual(Q, K, [ar.Slices(np.eye(4))], np.ones((1, 7))),
        ValueError,
        r"expected \(H, F\) = \(1, 4\)",
    ),
    (lambda: ar.dual_features(Q, K, [ar.Quadratic(np.ones((3, 2)))]), ValueError, "basis has shape"),
    (lambda: ar.dual_features(Q, K, np.eye(4)), TypeError, "families must be a list of at least one family"),
    (lambda: ar.dual_features(Q, K, [np.eye(4)]), TypeError, "families must hold families of features"),
    (lambda: objectives.kl_loss_and_gradient(P, F, F[..., :2]), ValueError, "teacher_columns has shape"),
    (lambda: objectives.dual_loss_and_gradient(P, F, epsilon=0), ValueError, "epsilon must be positive"),
    (lambda: objectives.dual_loss_and_gradient(P, F * np.inf), ValueError, "query_dual contains"),
    (lambda: fit([]), ValueError, "batches is empty"),
    (lambda: fit([(Q, K)], n_iter=0), ValueError, "n_iter must be at least 1"),
    (lambda: fit([(Q, K)], epsilon=0), ValueError, "epsilon must be positive"),
    (lambda: fit([(Q, K)], quadratic=-1), ValueError, "quadratic must be at least 0"),
    (lambda: fit([(Q, K)], refine=-1), ValueError, "refine must be at least 0"),
    (lambda: fit([(Q, K)], objective="mse"), ValueError, "objective must be one of"),
    (lambda: fit([(Q, K)], hidden=3), TypeError, "no setting hidden; the families of features are cumulants"),
    (lambda: fit([(Q, K)], n_slices=4, candidates=3), ValueError, "candidates must be at least 4"),
    (lambda: fit([(Q, K)], ridge=-1.0), ValueError, "ridge must be at least 0"),
    (lambda: fit([(Q, K)], ridge=np.nan), ValueError, "ridge must be at least 0"),
    (lambda: fit([(Q, K, F > 9, None)]), ValueError, "hold no valid token"),
    (lambda: fit([(Q, K * np.nan)]), ValueError, "k contains NaN"),
    (lambda: fit([(Q, K), (Q[..., :2], K[..., :2])]), ValueError, "directions has shape"),
    (lambda: fit([(Q[0, 0], K[0, 0])]), ValueError, r"q of a batch must be an array \(batch, heads, tokens, d\)"),
    (lambda: fit([(Q, K[0])]), ValueError, "k has shape"),
    (lambda: fit([(Q.tolist(), K.tolist())]), ValueError, "q of a batch must be an array .* got list"),
    (lambda: fit([(Q, K)], n_slices=0), ValueError, "n_slices must be at least 1"),
    (lambda: fit(Q), TypeError, r"batches must yield tuples \(q, k\) .*got ndarray"),
    (lambda: fit([(Q, K, None)]), TypeError, "got 3 of them"),
    (lambda: fit(3), TypeError, "batches must be an iterable of batches, got int"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_wrong_calls(call, error, message):
    if error is None:  # not wrong: nothing to measure gives the promised number
        np.testing.assert_array_equal(call(), message)
        return
    with refused(CALLS, error, match=message):
        call()
