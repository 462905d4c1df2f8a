"""What callers may hand the kernels: views of any strides, any device, lengths in any order, duals of their own."""

import battery
import numpy as np
import pytest
import stand_in
from battery import amortizer

from asap_ref.fast import attention as fast
from asap_ref.fast import kernels
from asap_ref.fast.kernels import launch
from asap_ref.fast.prediction import predicted_dual
from asap_ref.method import attention as readable
from asap_ref.model.architecture import Architecture
from asap_ref.model.mechanism import Attention
from asap_ref.model.transformer import Transformer, transformer_vjp
from asap_ref.rivals.one_sided import fast_one_sided_attention
from asap_ref.support.arrays import to_numpy
from asap_ref.support.trees import leaves

TOLERANCE = 1e-12  # float64, relative to the largest entry: a few hundred roundings of 1e-16

# ------------------------------------------------------------------------------------------------------------ views


def strided(device, x):
    """x on the device, as the view of heads that a model makes of (B, n, H, d)."""
    return device.permute_dims(device.asarray(np.ascontiguousarray(np.moveaxis(x, 1, 2))), (0, 2, 1, 3))


def by_columns(device, x):
    """x on the device, its last axis the slow one."""
    return device.permute_dims(device.asarray(np.ascontiguousarray(np.swapaxes(x, -1, -2))), (0, 1, 3, 2))


def every_second(device, x):
    """x on the device, between other tokens."""
    return device.asarray(np.repeat(x, 2, axis=-2))[:, :, ::2]


VIEWS = {"heads": strided, "columns": by_columns, "every second token": every_second}
as_views = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)


@as_views
def test_attentions_of_views(device, view):
    q, k, v = np.random.default_rng(0).standard_normal((3, battery.B, battery.H, 9, 4))
    map_ = amortizer(4)
    views = [view(device, x) for x in (q, k, v)]
    assert battery.error(fast.softmax_attention(*views), readable.softmax_attention(q, k, v)) <= TOLERANCE
    assert battery.error(fast.sinkhorn_attention(*views), readable.sinkhorn_attention(q, k, v)) <= TOLERANCE
    assert battery.error(fast.asap_attention(*views, map_), readable.asap_attention(q, k, v, map_)) <= TOLERANCE


@as_views
@pytest.mark.parametrize("n_iter", [0, 3])
def test_gradients_from_cotangents_that_are_views(device, view, n_iter):
    case = battery.Case(device.asarray, 9, 11, d=4, p=3)
    d_out = np.random.default_rng(1).standard_normal((battery.B, battery.H, 9, 3))
    assert gradient_error(case, n_iter, d_out, view(device, d_out)) <= TOLERANCE


@pytest.mark.parametrize("n_iter", [0, 3])
def test_gradients_from_cotangents_that_are_broadcast(device, n_iter):
    """That of a sum is one number, that of a mean over tokens a row of them."""
    case, rng = battery.Case(device.asarray, 9, 11, d=4, p=3), np.random.default_rng(1)
    for shape in ((1, 1, 1, 1), (battery.B, battery.H, 1, 3), (9, 1)):
        d_out, whole = rng.standard_normal(shape), (battery.B, battery.H, 9, 3)
        placed = device.broadcast_to(device.asarray(d_out), whole)
        assert gradient_error(case, n_iter, np.broadcast_to(d_out, whole), placed) <= TOLERANCE


def gradient_error(case, n_iter, d_out, placed):
    """Of softmax attention where n_iter is 0, of Sinkhorn's else: largest error of the three gradients."""
    if n_iter == 0:
        ours, theirs, settings = fast.softmax_attention_vjp, readable.softmax_attention_vjp, {}
    else:
        ours, theirs, settings = fast.sinkhorn_attention_vjp, readable.sinkhorn_attention_vjp, {"n_iter": n_iter}
    found = ours(*case.placed, **settings)[1](placed)
    expected = theirs(*case.wide, **settings)[1](d_out)
    return max(battery.error(x, y) for x, y in zip(found, expected, strict=True))


def test_a_cotangent_is_copied_once_and_only_if_it_has_gaps(emulated):
    case = battery.Case(emulated.asarray, 9, 9, d=4, p=4)
    for d_out, copies in ((strided(emulated, case.wide[2]), 1), (case.placed[2], 0)):
        _, vjp = fast.sinkhorn_attention_vjp(*case.placed, n_iter=2)
        with stand_in.counted() as found:
            vjp(d_out)
        assert found["launch", "ascontiguousarray"] == copies


@pytest.mark.parametrize("name", ["softmax", "sinkhorn"])
def test_gradients_of_a_transformer(device, name):
    """Its heads are views, and so is the cotangent that it hands back to the attention."""
    architecture = Architecture(n_layers=2, width=16, n_heads=2)
    attention = Attention(name, {"n_iter": 3} if name == "sinkhorn" else {})
    rng = np.random.default_rng(0)
    images, d_logits = rng.random((2, 8, 8)), rng.standard_normal((2, 10))
    found, expected = ([], [])
    for xp, results in ((np, expected), (device, found)):
        model = Transformer.create(architecture, attention, xp=xp, dtype=np.float64)
        inputs, cotangent = xp.asarray(images), xp.asarray(d_logits)
        logits, vjp = transformer_vjp(model.params, inputs, architecture, model.attentions)
        results += [logits, *leaves(vjp(cotangent))]
    for x, y in zip(found, expected, strict=True):
        assert battery.error(x, y) <= 1e-11  # through two layers


# ---------------------------------------------------------------------------------------------------------- lengths


def test_lengths_in_any_order(device):
    """What a function of the device may have of shared memory is one number for all that launch it."""
    map_ = amortizer(5, n_slices=1, cumulants=False)
    for n in (8192, 4096, 64, 8192):  # more than 48 KiB, from where on it has to be asked for, but for the third
        q = np.random.default_rng(n).standard_normal((1, battery.H, n, 5)).astype(np.float32)
        found = to_numpy(predicted_dual(*map(device.asarray, (q, q[..., :64, :])), map_))
        expected = map_.predict(q.astype(float), q[..., :64, :].astype(float))
        found = found.astype(float)
        assert battery.error(found - found.mean(-1, keepdims=True), expected) <= 5e-6  # of float32, as ever


# -------------------------------------------------------------------------------------------------------- overflows


@pytest.mark.parametrize("name", battery.OVERFLOWS)
def test_finite_inputs_that_overflow_are_found(device, name):
    assert battery.overflow(device.asarray, name) == 0


@pytest.mark.parametrize("name", [name for name in battery.OVERFLOWS if name.startswith("sinkhorn of scores")])
def test_numpy_raises_where_all_scores_overflow(name):
    """In Sinkhorn; what overflows beside finite numbers it may leave out of sums, where the kernels report it."""
    function, tokens, settings = battery.overflowing(name)
    with pytest.raises(FloatingPointError):
        function(*tokens, **settings)


def test_float32_scores_that_overflow(device):
    for n_iter in (0, 1, 20):
        q, k = (device.asarray(np.full((1, 70, 4), x, np.float32)) for x in (1e25, -1e25))
        fast.sinkhorn_attention(q, k, k, n_iter=n_iter)
        with pytest.raises(FloatingPointError, match="sinkhorn_attention"):
            kernels.raise_if_not_finite()


def test_padding_beside_overflows_stays_zero(device):
    """A query whose scores all overflow, among others and beside padding: its own row is reported, and no other."""
    q, k = np.ones((3, 4)), np.full((5, 4), -1e200)
    q[1] = 1e200
    mask = np.array([True, True, False])
    out = to_numpy_unchecked(
        fast.softmax_attention(*map(device.asarray, (q, k, k)), query_mask=device.asarray(mask))
    )
    np.testing.assert_array_equal(np.isnan(out).all(-1), [False, True, False])
    np.testing.assert_array_equal(out[2], 0)


def test_without_keys_the_result_is_zero_and_nothing_is_reported(device):
    q = device.asarray(np.full((3, 4), 1e200))
    none = device.asarray(np.zeros(3, bool))
    for out in (fast.softmax_attention(q, q, q, key_mask=none), fast.sinkhorn_attention(q, q, q, key_mask=none)):
        np.testing.assert_array_equal(to_numpy(out), 0)


def to_numpy_unchecked(x):
    """Copy x to the host, whatever was reported."""
    with pytest.raises(FloatingPointError):
        to_numpy(x)
    return to_numpy(x)


# ---------------------------------------------------------------------------------------------------------- devices


def test_arrays_of_a_device_that_is_not_current(emulated):
    case, map_, other = battery.Case(emulated.asarray, 9, 11), amortizer(5, quadratic=3), stand_in.DEVICES[1]
    with other:
        there = [emulated.asarray(x) for x in case.wide]
        d_out = emulated.asarray(np.ones((battery.B, battery.H, 9, 3)))
    results = []
    for tokens in (case.placed, there):
        out, vjp = fast.sinkhorn_attention_vjp(*tokens, n_iter=2)
        made = [
            fast.softmax_attention(*tokens),
            fast.sinkhorn_attention(*tokens),
            fast.asap_attention(*tokens, map_),
            fast_one_sided_attention(*tokens, map_),
            *(out, *vjp(d_out if tokens is there else case.placed[2][:, :, :9] * 0 + 1.0)),
        ]
        assert all(x.device is tokens[0].device for x in made)
        results.append([to_numpy(x) for x in made])
    for x, y in zip(*results, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_result_of_another_device_that_is_not_finite_is_found(emulated):
    with stand_in.DEVICES[1]:
        q = emulated.asarray(np.full((3, 2), np.nan))
    fast.softmax_attention(q, q, q)
    with pytest.raises(FloatingPointError, match="device 1 of the stand-in"):
        kernels.raise_if_not_finite()


def test_half_precision_on_a_device_that_is_not_current(emulated):
    map_ = amortizer(5)
    with stand_in.DEVICES[1]:
        q = emulated.asarray(np.ones((battery.H, 3, 5), np.float16))
    assert fast.asap_attention(q, q, q, map_).device is stand_in.DEVICES[1]
    assert kernels.number_like(q).device is stand_in.DEVICES[1]


# ------------------------------------------------------------------------------------------------------------ duals


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("of", ["query", "key"])
def test_duals_of_any_layout_and_dtype(device, of, dtype):
    case = battery.Case(device.asarray, 9, 11, dtype=dtype)
    form = {"query": kernels.attention_from_query_dual, "key": kernels.attention_from_key_dual}[of]
    dual = np.random.default_rng(0).standard_normal((battery.B, battery.H, 9 if of == "query" else 11))
    dual = dual.astype(np.float32)  # what both dtypes can hold
    expected = to_numpy(form(*case.placed, device.asarray(dual.astype(dtype))))
    views = [
        device.asarray(dual),
        device.asarray(dual.astype(np.float64)),
        device.permute_dims(device.asarray(np.ascontiguousarray(dual.T)), (2, 1, 0)),
        device.asarray(np.repeat(dual, 2, axis=-1))[..., ::2],
    ]
    for view in views:
        np.testing.assert_array_equal(to_numpy(form(*case.placed, view)), expected)
    same = device.broadcast_to(device.asarray(dual[0, 0]), dual.shape)
    whole = device.asarray(np.broadcast_to(dual[0, 0], dual.shape).copy())
    np.testing.assert_array_equal(to_numpy(form(*case.placed, same)), to_numpy(form(*case.placed, whole)))


@pytest.mark.parametrize(("of", "n"), [("query", 9), ("key", 11)])
def test_duals_of_another_shape_are_refused(device, of, n):
    case = battery.Case(device.asarray, 9, 11)
    form = {"query": kernels.attention_from_query_dual, "key": kernels.attention_from_key_dual}[of]
    for shape in ((n,), (battery.B, battery.H, n + 1), (battery.H, battery.B, n)):
        with pytest.raises(ValueError, match=f"the {of} dual must have shape"):
            form(*case.placed, device.asarray(np.zeros(shape)))


def test_constants_of_a_prediction_may_be_views(device):
    case, rng = battery.Case(device.asarray, 9, 11), np.random.default_rng(0)
    theta, w = rng.standard_normal((5, 4)), rng.standard_normal((battery.H, 4, 1))
    expected = kernels.predict(*case.placed[:2], (device.asarray(theta), device.asarray(w)), None)
    views = device.permute_dims(device.asarray(np.ascontiguousarray(theta.T)), (1, 0)), device.asarray(w)
    np.testing.assert_array_equal(to_numpy(kernels.predict(*case.placed[:2], views, None)), to_numpy(expected))


# ------------------------------------------------------------------------------------------------------- dimensions


def test_no_block_has_less_than_two_warps(emulated):
    for d in range(32, 2049, 32):
        q = emulated.asarray(np.zeros((1, 1, d), np.float32))
        for parts in (launch.FORWARD, ("tile", "gradient")):
            problems = launch.Problems(q, q, q, parts=parts)
            assert not problems.fit or problems.build.threads >= 64
    assert not problems.fit
