"""Padding is invisible: a padded batch equals each sequence alone, outputs and gradients; and masks that are not."""

import numpy as np
import pytest
from backends import BACKENDS
from families import amortized_query_dual, amortized_query_dual_vjp, dual_features, dual_features_vjp, families
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import THETA, THETA_OF_HEADS, WEIGHTS, map_arrays, outputs
from problems import qkv

import asap_ref as ar
from asap_ref.calibration import batch as calibration
from asap_ref.method import attention as readable
from asap_ref.model.mechanism import MECHANISMS as FORMS
from asap_ref.rivals.initial_duals import STARTS
from asap_ref.support.arrays import to_numpy

AMORTIZER = ar.fit_amortizer([qkv(16, 3, n=6, d=4)[:2]], n_slices=5, n_iter=4, epsilon=0.7)
RICH = ar.fit_amortizer(  # all it can have: slices of each head, a basis that is not the axes, refinement
    [qkv(16, 3, n=6, d=4, seed=1)[:2]],
    **{"n_slices": 3, "candidates": 8, "quadratic": 2, "refine": 1, "n_iter": 4, "epsilon": 0.7},
)
KEYWISE = ar.fit_amortizer([qkv(16, 3, n=6, d=4)[1::-1]], n_slices=5, n_iter=4, epsilon=0.7)
SINKHORN = {"n_iter": 5, "epsilon": 0.7}
ASAP = {"amortizer": AMORTIZER}
MIXED = {
    "parts": [
        (ar.Attention("asap", {"amortizer": RICH.of_heads([2, 0])}), [2, 0]),
        (ar.Attention("sinkhorn", SINKHORN), [1]),
    ]
}
FEATURES = {  # operator, its VJP, what it takes besides q and k; tokens are the last axis of its outputs
    "potentials": (ar.sliced_potentials, ar.sliced_potentials_vjp, [THETA]),
    "features": (dual_features, dual_features_vjp, [THETA_OF_HEADS]),
    "prediction": (amortized_query_dual, amortized_query_dual_vjp, [THETA, WEIGHTS]),
}
MECHANISMS = {  # operator, its VJP, settings; takes q, k and v
    "softmax": (ar.softmax_attention, ar.softmax_attention_vjp, {}),
    "sinkhorn": (ar.sinkhorn_attention, ar.sinkhorn_attention_vjp, SINKHORN),
    "asap": (ar.asap_attention, ar.asap_attention_vjp, ASAP),
    "rich asap": (ar.asap_attention, ar.asap_attention_vjp, {"amortizer": RICH}),
    "mixed": (ar.mixed_attention, ar.mixed_attention_vjp, MIXED),
    "one-sided": (ar.one_sided_attention, ar.one_sided_attention_vjp, {"amortizer": KEYWISE}),
    "sliced": (ar.sliced_attention, ar.sliced_attention_vjp, {"temperature": 0.5}),
    **{
        f"initial-{start}": (ar.initial_attention, ar.initial_attention_vjp, {"start": start, "epsilon": 0.7})
        for start in STARTS
    },
    "over-relaxed": (FORMS["over-relaxed"].forward, FORMS["over-relaxed"].vjp, {"n_iter": 2, "epsilon": 0.7}),
    "dual-softmax": (FORMS["dual-softmax"].forward, FORMS["dual-softmax"].vjp, {"epsilon": 0.7}),
    "readable softmax": (readable.softmax_attention, readable.softmax_attention_vjp, {}),
    "readable sinkhorn": (readable.sinkhorn_attention, readable.sinkhorn_attention_vjp, SINKHORN),
    "readable asap": (readable.asap_attention, readable.asap_attention_vjp, ASAP),
}
OPERATORS = [*FEATURES, *MECHANISMS]
PLACES = [(name, "float64" if "float64" in backend.dtypes else "float32") for name, backend in BACKENDS.items()]
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}  # of the largest entry, or of 1


def close(found, expected, tolerance):
    atol = tolerance * max(1, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def check_padding(name, sizes, extra, fill, place=lambda x: x, tolerance=1e-12, seed=0):
    """Compare a batch, padded by ``extra`` more than it needs and at any place, with each sequence alone."""
    if name in FEATURES:
        f, f_vjp, others = FEATURES[name]
        options, sides, axis = {}, [0, 1], -1  # an argument has the query's (0) or the key's (1) tokens
    else:
        (f, f_vjp, options), others, sides, axis = MECHANISMS[name], [], [0, 1, 1], -2
    others = [place(x) for x in others]
    rng = np.random.default_rng(seed)
    alone = [qkv(3, n=n, m=m, d=4, p=2, seed=seed + i)[: len(sides)] for i, (n, m) in enumerate(sizes)]
    masks = []
    for lengths in np.transpose(sizes):
        room = max(lengths) + extra
        masks.append(np.stack([rng.permutation(room) < length for length in lengths]))

    def of_sequence(x, side, i, axis):
        """The tokens of sequence i; what is left out must be zero."""
        x = np.moveaxis(to_numpy(x)[i], axis, 0)
        assert not x[~masks[side][i]].any()
        return np.moveaxis(x[masks[side][i]], 0, axis)

    batch = []
    for a, side in enumerate(sides):
        padded = np.full((len(sizes), 3, masks[side].shape[-1], alone[0][a].shape[-1]), fill)
        for i, sequence in enumerate(alone):
            padded[i][:, masks[side][i]] = sequence[a]
        batch.append(place(padded))
    options = dict(options)
    mask_arguments = {
        key: place(mask[:, None]) for key, mask in zip(("query_mask", "key_mask"), masks, strict=True)
    }
    forward = f(*batch, *others, **options, **mask_arguments)
    value, vjp = f_vjp(*batch, *others, **options, **mask_arguments)
    cotangent = map_arrays(lambda x: rng.standard_normal(x.shape), map_arrays(to_numpy, value))
    gradients = vjp(map_arrays(place, cotangent))

    shared = [0.0] * len(others)
    for i, sequence in enumerate(alone):
        expected, expected_vjp = f_vjp(*(place(x[None]) for x in sequence), *others, **options)
        for found in (forward, value):
            for side, (x, e) in enumerate(zip(outputs(found), outputs(expected), strict=True)):
                close(of_sequence(x, side, i, axis), to_numpy(e)[0], tolerance)
        kept = [
            place(np.moveaxis(np.moveaxis(c[i], axis, 0)[masks[side][i]], 0, axis)[None])
            for side, c in enumerate(outputs(cotangent))
        ]
        expected_gradients = expected_vjp(tuple(kept) if isinstance(value, tuple) else kept[0])
        for side, x, e in zip(sides, gradients, expected_gradients, strict=False):
            close(of_sequence(x, side, i, -2), to_numpy(e)[0], tolerance)
        shared = [s + to_numpy(e) for s, e in zip(shared, expected_gradients[len(sides) :], strict=True)]
    for x, e in zip(gradients[len(sides) :], shared, strict=True):  # directions and weights serve all sequences
        close(to_numpy(x), e, tolerance)


def test_every_mechanism_of_a_model_is_among_those_that_are_checked():
    checked = {f for f, _, _ in MECHANISMS.values()}
    assert all(line.forward in checked for line in FORMS.values())


@pytest.mark.parametrize("name", OPERATORS)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3),
    extra=st.integers(0, 7),
    fill=st.sampled_from([0.0, np.nan, np.inf, 1e30]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_padding_is_invisible(name, sizes, extra, fill, seed):
    check_padding(name, sizes, extra, fill, seed=seed)


def modules_and_operators():
    """All of them; jax compiles each step for each size anew, so that most of it is slow."""
    for backend, dtype in PLACES:
        for name in OPERATORS:
            if "readable" in name or (backend == "jax" and name != "asap"):  # jax in narrow integers: the longest
                continue
            slow = [pytest.mark.slow] if "jax" in backend else []
            yield pytest.param(backend, dtype, name, marks=slow, id=f"{backend}-{name}")


@pytest.mark.parametrize(("backend", "dtype", "name"), list(modules_and_operators()))
def test_padding_is_invisible_on_every_module(backend, dtype, name):
    sizes = [(5, 8), (5, 8)] if "jax" in backend else [(5, 8), (7, 3), (6, 6)]
    if reason := BACKENDS[backend].missing():
        pytest.skip(reason)
    with BACKENDS[backend](dtype) as (_, put):
        check_padding(name, sizes, 2, np.nan, put, TOLERANCE[dtype])


@pytest.mark.parametrize("name", MECHANISMS)
def test_masks_and_sizes_keep_the_marginals(name):
    """With the identity for values the output is the plan: rows sum to 1, columns to n'/m', padding to zero."""
    f, _, options = MECHANISMS[name]
    q, k, _ = qkv(2, 3, n=6, m=9, d=4, size=0.5)
    query_mask = np.asarray([[True] * 4 + [False] * 2, [True] * 6])[:, None]
    key_mask = np.asarray([[True] * 9, [True] * 7 + [False] * 2])[:, None]
    values = np.broadcast_to(np.eye(9), (2, 3, 9, 9))
    if "sinkhorn" in name:
        options = {"n_iter": 200}
    if name == "sliced":
        options = {"hard": True}  # soft sorting has rows that sum to 1 only in the limit
    P = f(q, k, values, query_mask=query_mask, key_mask=key_mask, **options)
    np.testing.assert_allclose(P.sum(-1), np.broadcast_to(query_mask, (2, 3, 6)), atol=1e-12)
    assert not P.transpose(0, 1, 3, 2)[~np.broadcast_to(key_mask, (2, 3, 9))].any()
    if "sinkhorn" in name or name == "sliced":
        mass = query_mask.sum(-1, keepdims=True) / key_mask.sum(-1, keepdims=True)
        np.testing.assert_allclose(P.sum(-2), np.broadcast_to(mass * key_mask, (2, 3, 9)), atol=1e-9)


# ------------------------------------------------------------------------------------------------- nothing left


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("masked", ["query_mask", "key_mask", "both"])
@pytest.mark.parametrize("fill", [1.0, np.nan])
def test_a_fully_masked_sequence_gives_zeros_forward_and_backward(name, masked, fill):
    q, k, v = qkv(2, 3, n=6, m=7, d=4, p=2)
    gone = {key: np.ones((2, 1, size), bool) for key, size in (("query_mask", 6), ("key_mask", 7))}
    for key in gone:
        if masked in (key, "both"):
            gone[key][0] = False
    if not gone["query_mask"][0].any():
        q[0] = fill
    if not gone["key_mask"][0].any():
        k[0], v[0] = fill, fill
    f_vjp = (FEATURES | MECHANISMS)[name][1]
    others, options = (FEATURES[name][2], {}) if name in FEATURES else ([], MECHANISMS[name][2])
    tokens = [q, k] if name in FEATURES else [q, k, v]
    value, vjp = f_vjp(*tokens, *others, **options, **gone)
    rng = np.random.default_rng(0)  # ones would not do: potentials have mean zero
    gradients = vjp(map_arrays(lambda x: rng.standard_normal(x.shape), value))
    assert all(np.isfinite(x).all() for x in [*outputs(value), *gradients])
    for x in [*outputs(value), *gradients[: len(tokens)]]:
        if name == "features" or name == "prediction":
            # |q|² and its gradient need no keys; nothing else of the sequence is left
            continue
        assert not x[0].any()
        assert x[1].any()


# --------------------------------------------------------------------------------------------------- calibration


def test_calibration_of_a_padded_batch_is_that_of_its_sequences():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, (40, 2))
    sequences = [qkv(1, 2, n=n, m=m, d=4, seed=i)[:2] for i, (n, m) in enumerate(lengths)]
    expected = ar.fit_amortizer(sequences, n_slices=4, n_iter=5)
    q, k = (np.full((40, 2, 10, 4), np.nan) for _ in range(2))
    for i, (queries, keys) in enumerate(sequences):
        q[i, :, : lengths[i, 0]], k[i, :, : lengths[i, 1]] = queries[0], keys[0]
    query_mask, key_mask = ((np.arange(10) < length[:, None])[:, None] for length in lengths.T)
    found = ar.fit_amortizer([(q, k, query_mask, key_mask)], n_slices=4, n_iter=5)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=0, atol=1e-9 * np.abs(expected.weights).max())
    np.testing.assert_allclose(found.r_squared, expected.r_squared, rtol=1e-9)
    halves = [tuple(x[part] for x in (q, k, query_mask, key_mask)) for part in (slice(0, 15), slice(15, 40))]
    streamed = ar.fit_amortizer(halves, n_slices=4, n_iter=5)
    np.testing.assert_allclose(
        streamed.weights, expected.weights, rtol=0, atol=1e-9 * np.abs(expected.weights).max()
    )


def padded_sequences(count, room, seed=0, heads=2, d=4):
    """Sequences of unequal sizes, and the same in one batch, padded with NaN at any place: (sequences, batch)."""
    rng = np.random.default_rng(seed)
    all_sizes = rng.integers(2, 9, (count, 2))  # before the places, which need more draws where there is more room
    sequences, masks = [], []
    q, k = (np.full((count, heads, size, d), np.nan) for size in room)
    for i, sizes in enumerate(all_sizes):
        sequences.append(qkv(1, heads, n=sizes[0], m=sizes[1], d=d, seed=i)[:2])
        masks.append([rng.permutation(size) < length for size, length in zip(room, sizes, strict=True)])
        for batch, tokens, mask in zip((q, k), sequences[i], masks[i], strict=True):
            batch[i][:, mask] = tokens[0]
    query_mask, key_mask = (np.stack(side)[:, None] for side in zip(*masks, strict=True))
    return sequences, (q, k, query_mask, key_mask)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("rank", [0, 3])
def test_padding_is_invisible_to_the_statistics_of_every_objective(per_head, rank):
    rng = np.random.default_rng(0)
    heads = (2,) if per_head else ()
    directions = rng.standard_normal((*heads, 4, 5))
    basis = rng.standard_normal((*heads, 4, rank)) if rank else None
    of_features = families(directions, basis=basis, moments=rank > 0)
    sequences, batch = padded_sequences(12, (11, 14))
    for objective in ("regression", "kl"):
        settings_ = (objective, of_features, 5, 0.7)
        found = calibration.statistics_of_batch(*settings_, batch)
        parts = [calibration.statistics_of_batch(*settings_, s) for s in sequences]
        assert found.count == sum(part.count for part in parts)
        for name in ("gram", "cross", "square"):
            close(getattr(found, name), sum(getattr(part, name) for part in parts), 1e-12)


@pytest.mark.parametrize("objective", ["regression", "kl"])
@pytest.mark.parametrize("options", [{}, {"quadratic": 2}, {"moments": 2}, {"candidates": 9}, {"refine": 1}])
def test_calibration_does_not_depend_on_how_far_a_batch_is_padded(objective, options):
    """The basis is that of the batch, so one batch is compared with another."""
    settings_ = {"n_slices": 4, "n_iter": 5, "objective": objective, **options}
    fitted = []
    for room in ((9, 9), (13, 10)):
        _, batch = padded_sequences(40, room)
        fitted.append(ar.fit_amortizer([batch], **settings_))
    found, expected = fitted
    names = ("weights", "r_squared")
    if {"quadratic", "moments"} & set(options):  # eigenvectors have a sign of their own
        q, k = qkv(6, 2, n=8, d=4, seed=99)[:2]
        close(found.predict(q, k), expected.predict(q, k), 1e-9)
        names = ("r_squared",)
    else:
        close(found.family("slices").directions, expected.family("slices").directions, 1e-9)
    for name in names:
        close(getattr(found, name), getattr(expected, name), 1e-9)  # the solve makes more of the rounding


def test_statistics_count_valid_tokens_only():
    features, target = np.zeros((2, 3, 5, 6)), np.zeros((2, 3, 6))
    mask = np.asarray([[True] * 4 + [False] * 2, [True] * 6])[:, None]
    assert ar.SufficientStatistics.of(features, target, mask=mask).count == 10
    assert ar.SufficientStatistics.of(features, target).count == 12


# --------------------------------------------------------------------------------------------- masks of pairs

TRIANGLE = np.tril(np.ones((6, 6), bool))


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("key", ["query_mask", "key_mask"])
@pytest.mark.parametrize("shape", [(6, 6), (1, 1, 6, 6), (2, 1, 6, 6), (2, 3, 6, 6)])
def test_a_causal_mask_is_refused_with_the_reason(name, key, shape):
    q, k, v = qkv(2, 3, n=6, d=4)
    f = (FEATURES | MECHANISMS)[name][0]
    others, options = (FEATURES[name][2], {}) if name in FEATURES else ([], MECHANISMS[name][2])
    tokens = [q, k] if name in FEATURES else [q, k, v]
    with pytest.raises(ValueError, match=r"doubly-stochastic plan only the identity.*softmax attention"):
        f(*tokens, *others, **options, **{key: np.broadcast_to(TRIANGLE, shape)})


def test_the_reason_is_true():
    """Sinkhorn on causal scores ends in the identity."""
    S = np.where(TRIANGLE, np.random.default_rng(0).standard_normal((6, 6)), -1e4)
    P = ar.transport_plan(S, ar.sinkhorn(S, n_iter=5000))
    np.testing.assert_allclose(P, np.eye(6), atol=0.01)  # it goes there as 1 / n_iter


def test_a_triangle_is_padding_where_the_batch_could_be_of_such_lengths():
    """Sequences of lengths 1 to 6 have a lower triangle for a mask: with both masks it is taken for padding."""
    q, k, v = qkv(6, n=6, d=4)
    out = ar.softmax_attention(q, k, v, query_mask=TRIANGLE, key_mask=TRIANGLE)
    np.testing.assert_allclose(out[0, 0], v[0, 0], rtol=1e-12)
    with pytest.raises(ValueError, match="identity"):
        ar.softmax_attention(q, k, v, key_mask=TRIANGLE)
    other = TRIANGLE[::-1].copy()  # not a triangle in this order: padding
    assert ar.softmax_attention(q, k, v, key_mask=other).shape == (6, 6, 4)


def test_a_mask_of_a_batch_with_one_key_each_is_padding():
    """Its shape (2, 1) is also that of pairs of two queries and one key, where nothing is causal."""
    q, k, v = qkv(2, n=2, m=1, d=4)
    out = ar.softmax_attention(q, k, v, key_mask=np.ones((2, 1), bool))
    np.testing.assert_allclose(out, np.broadcast_to(v, out.shape), rtol=1e-12)


def test_a_mask_of_pairs_that_is_not_causal_is_refused_as_well():
    q, k, v = qkv(2, 3, n=6, m=7, d=4)
    for key in ("query_mask", "key_mask"):
        with pytest.raises(ValueError, match=r"one entry a pair of query and key, but masks mark padding"):
            ar.sinkhorn_attention(q, k, v, **{key: np.ones((2, 3, 6, 7), bool)})
