"""The fast forms are the readable ones: on random, sharp, tied, tiny, huge, masked and rectangular input."""

import tracemalloc
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from gradients import check_vjp
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from problems import masks, qkv

from asap_ref import Amortizer, Cumulants, Slices, fit_amortizer, sinkhorn
from asap_ref.fast import attention as fast_forms
from asap_ref.fast import from_dual, prediction, scaling, slices, threads
from asap_ref.fast.from_dual import attention_from_dual, below_top
from asap_ref.method import attention as readable
from asap_ref.method.transport import attention_scores, transport_plan, two_sided_c_transform
from asap_ref.rivals import initial_duals, one_sided
from asap_ref.support.arrays import array_module, to_numpy
from asap_ref.support.contracts import inside
from asap_ref.support.masks import centred

# relative to the largest entry; float32 as the conventions say
TOLERANCE = {np.float64: 1e-10, np.float32: 2e-5}


def amortizer_for(q, k, **options):
    return fit_amortizer([(q, k)], **{"n_slices": 5, "n_iter": 4, **options})


def forms(name, q, k, **options):
    """(fast, readable) functions of q, k, v."""
    if name == "asap" and "amortizer" not in options:
        options["amortizer"] = amortizer_for(q, k)
    return tuple(partial(getattr(home, f"{name}_attention"), **options) for home in (fast_forms, readable))


def agree(found, expected, dtype):
    assert found.dtype == dtype and found.shape == expected.shape
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max(initial=1e-30)
    )


KINDS = {
    "random": qkv(3, 2, n=9, d=4, p=5),
    "sharp": qkv(3, 2, n=30, d=16, size=8.6),  # scores of range 300
    "tied": tuple(np.round(x) for x in qkv(3, 2, n=9, d=4)),
    "tiny": qkv(3, 2, n=9, d=4, size=1e-20),
    "huge": qkv(3, 2, n=9, d=4, size=100.0),  # scores near 1e4
    "one token": qkv(3, 2, n=1, d=4),
    "long": qkv(1, 2, n=700, d=8),  # several tiles
    "many": qkv(300, 4, n=17, d=4),  # several chunks
    "no batch": qkv(2, n=9, d=4),
    "empty batch": qkv(0, 2, n=9, d=4),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["softmax", "sinkhorn", "asap"])
def test_fast_equals_readable(name, kind, dtype):
    q, k, v = (x.astype(dtype) for x in KINDS[kind])
    amortizer = (
        {"amortizer": amortizer_for(*KINDS["random"][:2])} if name == "asap" and kind == "empty batch" else {}
    )
    fast, slow = forms(name, q, k, **amortizer)
    # float32 scores near 1e4 are known to 1e-3 only, in either form; the readable float64 one is the judge
    expected = slow(*(x.astype(np.float64) for x in (q, k, v)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fast(q, k, v)
    if dtype == np.float32 and kind in ("huge", "sharp"):
        size = np.abs(attention_scores(q, k)).max()
        assert np.isfinite(found).all()
        rounding = 30 * 6e-8 * size  # of the exponents, over the teacher's half steps
        np.testing.assert_allclose(found, expected, rtol=0, atol=rounding * np.abs(expected).max())
    else:
        agree(found, expected, dtype)


@pytest.mark.parametrize("name", ["softmax", "sinkhorn", "asap"])
@pytest.mark.parametrize("kind", ["square", "rectangular", "fully masked"])
def test_masks_and_rectangles(name, kind):
    n, m = (6, 6) if kind == "square" else (6, 8)
    q, k, v = qkv(2, 3, n=n, m=m, d=4)
    query_mask, key_mask = (mask[:, None] for mask in masks(2, n, m))
    if kind == "fully masked":
        query_mask, key_mask = query_mask.copy(), key_mask.copy()
        query_mask[0], key_mask[0] = False, False
    options = {"query_mask": query_mask, "key_mask": key_mask}
    if name == "asap":
        options["amortizer"] = amortizer_for(*qkv(4, 3, n=6, d=4)[:2])
    fast, slow = forms(name, q, k, **options)
    agree(fast(q, k, v), slow(q, k, v), np.float64)
    (out, vjp), (_, slow_vjp) = (
        getattr(home, f"{name}_attention_vjp")(q, k, v, **options) for home in (fast_forms, readable)
    )
    for found, expected in zip(vjp(out), slow_vjp(out), strict=True):
        agree(found, expected, np.float64)


@pytest.mark.parametrize("kind", ["random", "sharp", "tied", "huge", "one token", "many", "empty batch"])
@pytest.mark.parametrize("name", ["softmax", "sinkhorn", "asap"])
def test_fast_gradients_equal_readable(name, kind):
    q, k, v = KINDS[kind]
    calibrated_on = KINDS["random" if kind == "empty batch" else kind][:2]
    options = {"amortizer": amortizer_for(*calibrated_on, epsilon=0.7)} if name == "asap" else {}
    (out, vjp), (slow_out, slow_vjp) = (
        getattr(home, f"{name}_attention_vjp")(q, k, v, **options) for home in (fast_forms, readable)
    )
    agree(out, slow_out, np.float64)
    # of one token the gradients are zero, the difference of terms of size one; so are those of plans that choose one
    # key, to the rounding of exponents (1e-12) times keys of size 100
    least = 1e-5 if kind == "one token" else 0.1 if kind == "huge" else 1e-30
    for found, expected in zip(vjp(out), slow_vjp(out), strict=True):
        # at scores near 1e4 the duals themselves carry 1e-12, and the exponents of 41 half steps amplify it
        np.testing.assert_allclose(
            found, expected, rtol=0, atol=(1e-7 if kind == "huge" else 1e-10) * np.abs(expected).max(initial=least)
        )


def test_fast_gradients_are_derivatives():
    q, k, v = qkv(2, 1, n=6, m=7, d=4)
    amortizer = amortizer_for(*qkv(4, 2, n=6, m=7, d=4)[:2], epsilon=0.7).of_heads([0])
    asap = {"amortizer": amortizer}
    for name, options in (("softmax", {}), ("sinkhorn", {"n_iter": 4, "epsilon": 0.7}), ("asap", asap)):
        f, f_vjp = (getattr(fast_forms, f"{name}_attention{suffix}") for suffix in ("", "_vjp"))
        # forward and forward of the VJP add in another order: compare the derivative only
        out, _ = f_vjp(q, k, v, **options)
        np.testing.assert_allclose(out, f(q, k, v, **options), rtol=1e-12, atol=1e-14)
        check_vjp(
            lambda *a, f=f_vjp, o=options: f(*a, **o)[0], lambda *a, f=f_vjp, o=options: f(*a, **o), [q, k, v]
        )


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["softmax", "sinkhorn", "asap"]),
    st.integers(1, 12),
    st.floats(1e-3, 60),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_fast_equals_readable_on_anything(name, n, size, rounded, seed):
    q, k, v = qkv(2, 2, n=n, d=3, size=size, seed=seed)
    if rounded:
        q, k = np.round(q), np.round(k)
    fast, slow = forms(name, q, k)
    # scores up to 1e4: the exponents round by 1e-12, and the exponential turns that into a relative error
    np.testing.assert_allclose(fast(q, k, v), slow(q, k, v), rtol=0, atol=1e-9 * np.abs(v).max())


PADDED_AMORTIZERS = {
    refine: fit_amortizer(
        [qkv(8, 2, n=10, d=3)[:2]], n_slices=4, n_iter=4, quadratic=2, epsilon=0.8, refine=refine
    )
    for refine in (0, 2)
}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["softmax", "sinkhorn", "asap", "asap, refined"]),
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    left_out=st.tuples(*[st.sampled_from([None, 0.0, 0.3, 0.8, 1.0])] * 2),
    size=st.floats(1e-3, 60),
    rounded=st.booleans(),
    dtype=st.sampled_from([np.float64, np.float32]),
    seed=st.integers(0, 2**31),
)
@example("asap", (1, 9), (None, None), 59.0, False, np.float32, 156368)  # a predicted constant of 1e7, in float32
@example("asap", (2, 9), (0.8, None), 59.0, False, np.float32, 44)  # and padding, where the dual is zero
def test_fast_equals_readable_with_any_padding(name, sizes, left_out, size, rounded, dtype, seed):
    """Padding at any place, up to all of a sequence, and of any content; any two sizes."""
    q, k, v = (x.astype(dtype) for x in qkv(3, 2, n=sizes[0], m=sizes[1], d=3, size=size, seed=seed))
    if rounded:
        q, k = np.round(q), np.round(k)
    rng = np.random.default_rng(seed)
    query_mask, key_mask = (
        None if share is None else rng.random((3, 1, n)) >= share for share, n in zip(left_out, sizes, strict=True)
    )
    for tokens, mask in ((q, query_mask), (k, key_mask), (v, key_mask)):
        if mask is not None:
            tokens[~np.broadcast_to(mask, tokens.shape[:-1])] = np.nan
    options = {"query_mask": query_mask, "key_mask": key_mask}
    name, _, refined = name.partition(",")
    if name == "asap":
        options["amortizer"] = PADDED_AMORTIZERS[2 if refined else 0]
    fast, slow = forms(name, q, k, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fast(q, k, v)
    expected = slow(*(x.astype(np.float64) for x in (q, k, v)))
    assert found.dtype == dtype
    valid = np.ones(sizes[0], bool) if query_mask is None else query_mask
    assert not found[~np.broadcast_to(valid, found.shape[:-1])].any()
    # exponents round with the scores, up to 1e4, over the half steps of the iteration; and with the predicted dual,
    # which is larger still where the amortizer was calibrated on smaller tokens than these
    exponents = size**2 if size > 1 else 0.0
    if name == "asap":
        q, k = (readable.without_padding(q, k, v, query_mask, key_mask)[i].astype(np.float64) for i in (0, 1))
        f_hat = options["amortizer"].predict(q, k, query_mask=query_mask, key_mask=key_mask)
        exponents = max(exponents, np.abs(f_hat).max(initial=0.0))
    rounding = TOLERANCE[dtype] + 600 * np.finfo(dtype).eps * exponents
    assert np.abs(found - expected).max(initial=0) <= rounding * max(np.abs(np.nan_to_num(v)).max(), 1e-30)


def in_blocks(q, k, v, amortizer, block, **masks):
    """ASAP attention from blocks of so many keys, where `asap_attention` chooses the size."""

    def attend(q, k, v, query_mask=None, key_mask=None):
        f_hat = prediction.predicted_dual(q, k, amortizer, query_mask=query_mask, key_mask=key_mask)[..., None]

        def part(q, k, v, f_hat, *masks):
            more = {"refine": amortizer.refine, "omega": 1.3} if amortizer.refine else {}
            return attention_from_dual(q, k, v, f_hat[..., 0], *masks, epsilon=1.0, block=block, **more)

        if isinstance(q, np.ndarray):
            return threads.over_problems(part, [q, k, v, f_hat], [query_mask, key_mask])
        return part(q, k, v, f_hat, query_mask, key_mask)

    q, k, v = readable.without_padding(q, k, v, *(masks.get(name) for name in ("query_mask", "key_mask")))
    return inside(attend, q, k, v, **masks)


@pytest.mark.parametrize("block", [None, 7, 64])
def test_padding_over_several_tiles(block):
    q, k, v = qkv(2, 2, n=700, m=500, d=8)
    amortizer = amortizer_for(q, k)
    masks = {"query_mask": np.arange(700) < [[[650]], [[300]]], "key_mask": np.arange(500) < [[[80]], [[500]]]}
    agree(
        in_blocks(q, k, v, amortizer, block, **masks),
        readable.asap_attention(q, k, v, amortizer, **masks),
        np.float64,
    )


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_tiles_of_any_size_give_the_same(block):
    q, k, v = KINDS["long"]
    amortizer = amortizer_for(q, k)
    agree(
        in_blocks(q, k, v, amortizer, block),
        readable.asap_attention(q, k, v, amortizer),
        np.float64,
    )


def test_memory_grows_with_the_length_and_not_with_its_square():
    q, k, v = (x.astype(np.float32) for x in qkv(1, 1, n=6000, d=8))
    amortizer = amortizer_for(q[..., :50, :], k[..., :50, :])
    tracemalloc.start()
    fast_forms.asap_attention(q, k, v, amortizer)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6000 * 6000 * 4 / 8  # an eighth of one plan


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("m", [11, 8])
@pytest.mark.parametrize(("name", "block"), [("softmax", None), ("asap", None), ("asap", 3)])
def test_whole_arrays_on_a_device_give_what_tiles_do(name, block, m, masked):
    q, k, v = qkv(4, 2, n=11, m=m, p=3)
    masking = dict(zip(("query_mask", "key_mask"), masks(4, 11, m), strict=True)) if masked else {}
    masking = {key: mask[:, None] for key, mask in masking.items()}
    options = {"amortizer": fit_amortizer([(q, k)], n_slices=5, n_iter=4, quadratic=2)} if name == "asap" else {}
    attention = getattr(fast_forms, f"{name}_attention")
    if block:
        attention = partial(in_blocks, block=block)
    place = array_module("array_api_strict").asarray
    found = attention(*map(place, (q, k, v)), **options, **{key: place(mask) for key, mask in masking.items()})
    agree(to_numpy(found), attention(q, k, v, **options, **masking), np.float64)


@pytest.mark.parametrize("piece", [1, 60, 10**6])  # a head at a time, some heads, all at once
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("d", [3, 40])  # forms as a matrix, and where that would be large, token by token
def test_a_prediction_is_the_readable_one_in_pieces_of_any_size(d, masked, piece, monkeypatch):
    monkeypatch.setattr(prediction, "PIECE", piece)
    monkeypatch.setenv("ASAP_REF_THREADS", "1")
    q, k, _ = qkv(3, 5, n=7, m=9, d=d)
    options = {"n_slices": 2, "candidates": 4, "quadratic": 3, "moments": 2}
    amortizer = fit_amortizer([(q, k)], n_iter=4, **options)
    masking = dict(zip(("query_mask", "key_mask"), masks(3, 7, 9), strict=True)) if masked else {}
    masking = {name: mask[:, None] for name, mask in masking.items()}
    if masked:
        q, k = (np.where(mask[..., None], x, 0) for x, mask in zip((q, k), masking.values(), strict=True))
    found = prediction.predicted_dual(q, k, amortizer, **masking)
    expected = amortizer.predict(q, k, **masking)
    agree(centred(found, masking.get("query_mask")), expected, np.float64)


@pytest.mark.parametrize("module", ["numpy", "array_api_strict"])
@pytest.mark.parametrize("quadratic", [0, 2])
def test_a_prediction_is_zero_at_padding(module, quadratic):
    q, k, _ = qkv(4, 2, n=11, m=9)
    amortizer = fit_amortizer([(q, k)], n_slices=5, n_iter=4, quadratic=quadratic)
    place = array_module(module).asarray
    masking = {key: place(mask[:, None]) for key, mask in zip(("query_mask", "key_mask"), masks(4, 11, 9))}
    q, k = (np.where(to_numpy(mask)[..., None], x, 0) for x, mask in zip((q, k), masking.values(), strict=True))
    found = to_numpy(prediction.predicted_dual(place(q), place(k), amortizer, **masking))
    padding = np.broadcast_to(~to_numpy(masking["query_mask"]), found.shape)
    assert padding.any() and (found[padding] == 0).all() and (found[~padding] != 0).any()


@pytest.mark.parametrize("module", ["numpy", "array_api_strict"])
def test_a_prediction_that_leaves_the_range_is_rescued_in_the_log_domain(module):
    q, k, v = (x.astype(np.float32) for x in qkv(2, 2, n=12, d=4, size=20.0))
    useless = Amortizer(
        (Slices(np.eye(4)), Cumulants()), np.full((2, 7), -3.0), epsilon=0.3
    )  # exponents of several hundred
    expected = readable.asap_attention(*(x.astype(np.float64) for x in (q, k, v)), useless)
    found = to_numpy(fast_forms.asap_attention(*map(array_module(module).asarray, (q, k, v)), useless))
    assert np.isfinite(found).all()
    # duals near 1e3 in float32 are known to 1e-4
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(v).max())


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", [1.0, 75.0, 1000.0])
def test_scaling_gives_sinkhorns_duals_and_opens_segments_only_when_it_must(size, dtype):
    S = (size * np.random.default_rng(0).standard_normal((3, 9, 11))).astype(dtype)
    segments = inside(scaling.scale, S, n_iter=12, epsilon=0.7)
    assert (len(segments) == 1) == (size == 1.0 or (size == 75.0 and dtype == np.float64))
    expected = sinkhorn(S.astype(np.float64), n_iter=12, epsilon=0.7)
    for found, e in zip(scaling.scaled_duals(segments, 0.7), expected, strict=True):
        np.testing.assert_allclose(found, e, rtol=0, atol=(1e-5 if dtype == np.float32 else 1e-12) * size)


def test_one_thread_or_many_give_the_same_bits(monkeypatch):
    q, k, v = KINDS["many"]
    results = []
    for count in ("1", "3"):
        monkeypatch.setenv("ASAP_REF_THREADS", count)
        results.append(fast_forms.sinkhorn_attention(q, k, v))
    np.testing.assert_allclose(*results, rtol=1e-13)
    monkeypatch.setenv("ASAP_REF_THREADS", "none")
    with pytest.raises(ValueError, match="ASAP_REF_THREADS must be an integer"):
        threads.worker_count()


def test_an_error_on_a_worker_thread_reaches_the_caller():
    q, k, v = (x.copy() for x in KINDS["many"])
    q[200, 1, 3, 0] = np.nan
    for f in (fast_forms.softmax_attention, fast_forms.sinkhorn_attention):
        with pytest.raises(ValueError, match="q contains NaN"):
            f(q, k, v)


def test_chunks_cover_every_problem_once():
    for count in (0, 1, 7, 1000):
        for size in (1, 300, 10**6):
            covered = [i for piece in threads.chunks(count, size) for i in range(count)[piece]]
            assert covered == list(range(count))


@pytest.mark.parametrize("epsilon", [0.3, 2.0])
def test_asap_at_another_temperature(epsilon):
    q, k, v = qkv(3, 2, n=9, d=4)
    amortizer = fit_amortizer([(q, k)], n_slices=4, n_iter=5, epsilon=epsilon)
    agree(fast_forms.asap_attention(q, k, v, amortizer), readable.asap_attention(q, k, v, amortizer), np.float64)


def test_a_row_that_underflows_to_a_subnormal_sum_is_rescued(monkeypatch):
    """Its sum is not zero, so nothing divides by zero: but it has lost its digits."""
    q, k, v = qkv(1, 1, n=6, d=4)
    amortizer = amortizer_for(q, k)
    f_hat = np.asarray([0.0, 0, 0, 0, 0, -738])[None, None]  # exp(-738) is 3e-321
    monkeypatch.setattr(fast_forms, "predicted_dual", lambda *args, **kwargs: f_hat)
    S = attention_scores(q, k)
    expected = transport_plan(S, two_sided_c_transform(S, f_hat)) @ v
    agree(fast_forms.asap_attention(q, k, v, amortizer), expected, np.float64)


@pytest.mark.parametrize("form", [fast_forms, readable])
def test_an_amortizer_of_another_shape_is_refast_forms(form):
    q, k, _ = qkv(3, 2, n=9, d=4)
    amortizer = amortizer_for(q, k)
    with pytest.raises(ValueError, match=r"weights has shape \(2, 8\), expected \(H, F\) = \(3, 8\)"):
        form.asap_attention(*qkv(2, 3, n=9, d=4), amortizer)
    with pytest.raises(ValueError, match=r"directions has shape \(4, 5\).*with d = 6"):
        form.asap_attention(*qkv(3, 2, n=9, d=6), amortizer)


RIVALS = {
    "zero": (initial_duals, "initial_attention", {"start": "zero"}),
    "gaussian": (initial_duals, "initial_attention", {"start": "gaussian"}),
    "sorting": (initial_duals, "initial_attention", {"start": "sorting"}),
    "one-sided": (one_sided, "one_sided_attention", {}),
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rival", RIVALS)
def test_fast_rivals_equal_readable(rival, kind, padded):
    home, name, options = RIVALS[rival]
    q, k, v = KINDS[kind]
    if rival == "one-sided":
        calibration = KINDS["random" if kind == "empty batch" else kind]
        options = {"amortizer": amortizer_for(calibration[1], calibration[0])}
    else:
        options = {**options, "epsilon": 0.7}
    if padded:
        rng = np.random.default_rng(0)
        options = {**options, **{name: rng.random(q.shape[:-1]) < 0.7 for name in ("query_mask", "key_mask")}}
    fast, slow = (getattr(home, form)(q, k, v, **options) for form in (f"fast_{name}", name))
    # scores near 1e4: the exponents round by 1e-12, and the exponential turns that into a relative error
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-9 * np.abs(v).max(initial=1e-30))


@settings(deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
        | st.sampled_from([0.0, -0.0, 1.0, 1e-45, -1e-45, float(np.finfo(np.float32).max)]),
    )
)
def test_places_that_ride_along_in_a_sort_are_those_of_argsort(x):
    xs, places = slices.sorted_with_places(x)
    np.testing.assert_array_equal(xs, np.sort(x, axis=-1))
    np.testing.assert_array_equal(np.take_along_axis(x, places, axis=-1), xs)
    np.testing.assert_array_equal(np.sort(places, axis=-1), np.broadcast_to(np.arange(x.shape[-1]), x.shape))


def test_the_largest_dual_of_tokens_becomes_zero_whatever_padding_holds():
    mask = np.asarray([[True, True, False], [False, False, False]])
    found = below_top(np.asarray([[-1e4, -1e4 - 3, 0.0], [5.0, 6, 7]]), mask)
    np.testing.assert_array_equal(found[0], [0, -3, 0])
    assert np.all(found[1] == 0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kept", [0, from_dual.KEPT])  # scores between iterations: formed again, or kept
@pytest.mark.parametrize("block", [3, 8])  # some of the columns at a time, or all
@pytest.mark.parametrize("module", ["numpy", "array_api_strict"])
def test_refining_iterations_in_blocks_are_the_readable_ones(module, block, kept, masked, monkeypatch):
    monkeypatch.setattr(from_dual, "KEPT", kept)
    q, k, v = qkv(4, 2, n=11, m=8, p=3)
    amortizer = replace(fit_amortizer([(q, k)], n_slices=5, n_iter=4), refine=2, omega=np.full(2, 1.3))
    masking = dict(zip(("query_mask", "key_mask"), masks(4, 11, 8), strict=True)) if masked else {}
    masking = {key: mask[:, None] for key, mask in masking.items()}
    place = array_module(module).asarray
    placed = {key: place(mask) for key, mask in masking.items()}
    found = in_blocks(*map(place, (q, k, v)), amortizer=amortizer, block=block, **placed)
    agree(to_numpy(found), readable.asap_attention(q, k, v, amortizer, **masking), np.float64)


def test_softmax_in_tiles_holds_scores_of_any_size(monkeypatch):
    monkeypatch.setattr(fast_forms, "within_a_chunk", lambda q, k: False)
    q, k, v = KINDS["huge"]
    agree(fast_forms.softmax_attention(q, k, v), readable.softmax_attention(q, k, v), np.float64)


@pytest.mark.parametrize("offset", [-8192.0, 8192.0])
def test_a_constant_of_the_dual_costs_no_digits(offset):
    q, k, v = (x.astype(np.float32) for x in qkv(1, 1, n=9, d=4))
    f_hat = (np.arange(9, dtype=np.float32) % 4 / 8)[None]  # with the offset, too, exact in float32

    def out(f_hat):
        return inside(attention_from_dual, q[0], k[0], v[0], f_hat, None, None, epsilon=1.0)

    np.testing.assert_array_equal(out(f_hat + np.float32(offset)), out(f_hat))
