"""The kernels equal the readable forms, at every size, mask, dtype and epsilon that could tell them apart."""

import subprocess
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import battery
import emulator
import numpy as np
import pytest
import stand_in
from battery import MASKS, PAIRS, amortizer

from asap_ref.calibration.amortizer import Amortizer
from asap_ref.fast import attention as fast
from asap_ref.fast import kernels
from asap_ref.fast.kernels import attention as of_attention
from asap_ref.fast.kernels import build, launch
from asap_ref.fast.prediction import predicted_dual
from asap_ref.method import attention as readable
from asap_ref.method.features import Slices
from asap_ref.rivals.one_sided import fast_one_sided_attention
from asap_ref.support.arrays import array_namespace, to_numpy
from asap_ref.support.contracts import operator
from asap_ref.support.family import FAMILIES, Family
from asap_ref.support.masks import centred

# float64: a few hundred roundings of 1e-16. float32: the same of 6e-8, over the largest entry.
TOLERANCE = {"float64": 1e-12, "float32": 5e-6}
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE)
every_pair = pytest.mark.parametrize(("n", "m"), PAIRS)
every_mask = pytest.mark.parametrize("kind", MASKS)


@every_dtype
@every_mask
@every_pair
def test_attentions_and_half_steps(case, n, m, kind, dtype):
    problem = case(n, m, queries=kind, keys=kind, dtype=dtype)
    assert battery.softmax(problem) <= TOLERANCE[dtype]
    assert battery.sinkhorn(problem) <= TOLERANCE[dtype]
    assert battery.half_step(problem) <= TOLERANCE[dtype]


@every_dtype
@every_mask
@every_pair
def test_asap_with_slices_and_cumulants(case, n, m, kind, dtype):
    problem = case(n, m, queries=kind, keys=kind, dtype=dtype)
    assert battery.prediction(problem, amortizer(5)) <= TOLERANCE[dtype]
    assert battery.asap(problem, amortizer(5)) <= TOLERANCE[dtype]


@every_dtype
@every_mask
@pytest.mark.parametrize("family", battery.FAMILIES)
def test_every_family_folds(case, family, kind, dtype):
    problem, map_ = case(70, 130, queries=kind, keys=kind, dtype=dtype), amortizer(5, **battery.FAMILIES[family])
    assert battery.prediction(problem, map_) <= TOLERANCE[dtype]
    assert battery.asap(problem, map_) <= TOLERANCE[dtype]
    assert battery.one_sided(problem, map_) <= TOLERANCE[dtype]


@every_dtype
@pytest.mark.parametrize(
    ("queries", "keys"),
    [(None, "left"), ("left", None), ("empty", "holes"), ("holes", "empty"), (None, "empty"), ("empty", None)],
)
def test_masks_of_either_side(case, queries, keys, dtype):
    problem = case(70, 130, queries=queries, keys=keys, dtype=dtype)
    assert battery.sinkhorn(problem) <= TOLERANCE[dtype]
    assert battery.asap(problem, amortizer(5, quadratic=3, moments=3)) <= TOLERANCE[dtype]
    assert battery.gradients(problem, 2) <= TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [(), (1,), (B := battery.B, 1), (battery.H,), (1, battery.H), (B, battery.H)])
def test_masks_that_several_problems_share(case, shape):
    """No mask is copied for that."""
    problem, rng = case(70, 66), np.random.default_rng(3)
    masks = [rng.random((*shape, n)) < 0.7 for n in (70, 66)]
    problem.set(problem.wide, *masks)
    leading = (battery.B, battery.H)
    for mask in masks:
        shared, every, rows = launch.mask_rows(mask, leading, mask.shape[-1])
        assert shared is mask
        index = np.arange(battery.B * battery.H) // every % rows
        whole = np.broadcast_to(mask, (*leading, mask.shape[-1])).reshape(-1, mask.shape[-1])
        np.testing.assert_array_equal(mask.reshape(-1, mask.shape[-1])[index], whole)
    assert battery.sinkhorn(problem) <= TOLERANCE["float64"]
    assert battery.asap(problem, amortizer(5)) <= TOLERANCE["float64"]


def test_masks_shared_along_an_axis_between_others(device):
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 3, 4, 10, 5))
    mask = rng.random((2, 1, 4, 10)) < 0.7
    found = fast.softmax_attention(*map(device.asarray, (q, k, v)), key_mask=device.asarray(mask))
    assert battery.error(found, readable.softmax_attention(q, k, v, key_mask=mask)) <= TOLERANCE["float64"]


def test_one_problem_without_leading_axes(device):
    q, k, v = np.random.default_rng(0).standard_normal((3, 9, 5))
    mask = np.arange(9) > 2
    found = fast.sinkhorn_attention(*map(device.asarray, (q, k, v)), key_mask=device.asarray(mask))
    assert battery.error(found, readable.sinkhorn_attention(q, k, v, key_mask=mask)) <= TOLERANCE["float64"]


@every_dtype
def test_ties(case, dtype):
    for kind in (None, "left"):
        problem = case(130, 63, queries=kind, keys=kind, ties=True, dtype=dtype)
        assert battery.asap(problem, amortizer(5)) <= TOLERANCE[dtype]
        assert battery.sinkhorn(problem) <= TOLERANCE[dtype]


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.3, 3.0, 10.0])
def test_any_epsilon(case, epsilon):
    problem = case(65, 130, queries="left", keys="holes")
    assert battery.sinkhorn(problem, epsilon=epsilon) <= TOLERANCE["float64"]
    # in float32 scores over epsilon, up to 500, carry roundings of 6e-8 of themselves, in the readable form as well
    problem = case(65, 130, queries="left", keys="holes", dtype="float32")
    assert battery.sinkhorn(problem, epsilon=epsilon) <= TOLERANCE["float32"] * max(1, 0.1 / epsilon)


@pytest.mark.parametrize("n_iter", [0, 5])
def test_scores_of_ten_thousand(case, n_iter):
    # weights are exponentials of scores, which carry 1e-16, in float32 6e-8, of 1e4: float64 keeps 1e-11
    problem = case(130, 127, queries="left", keys="left", scale=60.0)
    assert np.nanmax(np.abs(problem.wide[0] @ problem.wide[1].mT)) / 5**0.5 > 1e4
    assert battery.sinkhorn(problem, n_iter) <= 1e-11
    problem = case(130, 127, queries="left", keys="left", scale=60.0, dtype="float32")
    same = [x.astype(np.float32) for x in problem.wide]
    expected = readable.sinkhorn_attention(*problem.wide, n_iter=n_iter, **problem.masks)
    in_float32 = readable.sinkhorn_attention(*same, n_iter=n_iter, **problem.masks)
    rounding = np.finfo(np.float32).eps / 2 * 1e4  # of an exponent of that size, and so of a weight, relatively
    assert battery.sinkhorn(problem, n_iter) <= max(rounding, 2 * battery.error(in_float32, expected))
    rows = fast.sinkhorn_attention(
        *problem.placed[:2], problem.place(np.ones_like(same[2])), n_iter=n_iter, **problem.placed_masks
    )
    valid = np.broadcast_to(problem.masks["query_mask"][..., None], rows.shape)
    assert np.abs(to_numpy(rows) - valid).max() <= 1e-6  # rows are exact whatever the scores


@pytest.mark.parametrize(
    ("d", "p", "dtype"),
    [
        (64, 64, "float32"),
        (1, 1, "float32"),
        (20, 70, "float64"),
        (200, 8, "float32"),
        *(pytest.param(*sizes, "float64", marks=pytest.mark.slow) for sizes in ((64, 64), (128, 96), (8, 200))),
    ],
)
def test_any_dimension(case, d, p, dtype):
    """Tiles are smaller where dimensions are large, and groups of columns several where values are wide."""
    problem = case(70, 66, d=d, p=p, queries="left", keys="holes", dtype=dtype)
    assert battery.sinkhorn(problem, 2) <= TOLERANCE[dtype]
    assert battery.asap(problem, amortizer(d, quadratic=3)) <= TOLERANCE[dtype]
    assert battery.gradients(problem, 1) <= TOLERANCE[dtype]


def test_small_devices_get_small_tiles_or_the_array_form(case, monkeypatch):
    for kilobytes, tile in ((48, 32), (20, None)):
        monkeypatch.setattr(launch, "shared_limit", lambda *_, limit=kilobytes * 1024: limit)
        problem = case(70, 66, d=24, p=20, queries="holes", keys="left")
        build = launch.Problems(*problem.placed).build
        assert (build and build.rows) == tile
        assert battery.sinkhorn(problem, 2) <= TOLERANCE["float64"]
        assert battery.asap(problem, amortizer(24)) <= TOLERANCE["float64"]


def test_more_slices_than_a_tile_has_rows_and_their_own_for_each_head(case):
    problem = case(66, 70, queries="left")
    map_ = amortizer(5, n_slices=70)
    assert battery.asap(problem, map_) <= TOLERANCE["float64"]
    own = np.random.default_rng(0).standard_normal((battery.H, 5, 70))
    families = (Slices(own / np.linalg.norm(own, axis=-2, keepdims=True)), *map_.families[1:])
    assert battery.asap(problem, replace(map_, families=families)) <= TOLERANCE["float64"]


@every_dtype
def test_long_slices(device, dtype):
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, battery.H, 4096, 5)).astype(dtype)
    map_ = amortizer(5, n_slices=1, cumulants=False)
    found = to_numpy(predicted_dual(device.asarray(q), device.asarray(k), map_)).astype(float)
    expected = map_.predict(q.astype(float), k.astype(float))
    assert battery.error(found - found.mean(-1, keepdims=True), expected) <= TOLERANCE[dtype]


# ----------------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", [None, "left"])
def test_half_precision_is_stored_and_float32_computed(device, case, dtype, kind):
    if device is not stand_in.NAMESPACE and dtype == "bfloat16":
        pytest.skip("CuPy's bfloat16 cannot be made from a NumPy array everywhere")
    problem = case(70, 130, d=16, p=9, queries=kind, keys=kind, dtype=dtype)
    same = [x.astype(battery.numpy_dtype(dtype)) for x in problem.wide]

    def naive(function, *args, **settings):
        """Error of the readable form, which computes in float32 and rounds its result."""
        expected = function(*problem.wide, *args, **settings, **problem.masks)
        computed = function(*(x.astype(np.float32) for x in same), *args, **settings, **problem.masks)
        return battery.error(computed.astype(same[0].dtype), expected)

    map_ = amortizer(16, quadratic=3, moments=3)
    assert battery.softmax(problem) <= 2 * naive(readable.softmax_attention)
    assert battery.sinkhorn(problem) <= 2 * naive(readable.sinkhorn_attention, n_iter=3)
    assert battery.asap(problem, map_) <= 2 * naive(readable.asap_attention, map_)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_rounds_as_numpy_does(device, dtype):
    """Attention to one key copies its value: ties go to even, infinity and NaN stay what they are."""
    if device is not stand_in.NAMESPACE and dtype == "bfloat16":
        pytest.skip("CuPy's bfloat16 cannot be made from a NumPy array everywhere")
    kind = battery.numpy_dtype(dtype)
    values = np.array([0, 1, -1 - 2**-7, 1 + 2**-8, 3 * 2**-8 - 1, 65504, 1e-7, -np.inf, np.nan], np.float32)
    v = values.astype(kind)[None, :]
    one = device.asarray(np.ones((1, 2), kind))
    found = launch.Problems(one, one, device.asarray(v)).attend(None, 1.0)
    np.testing.assert_array_equal(to_numpy(found).astype(np.float32), v.astype(np.float32))


# ---------------------------------------------------------------------------------------------------------- backwards


@every_dtype
@every_mask
@pytest.mark.parametrize(("n", "m"), [(65, 65), (3, 257), (257, 64), (1, 65)])
def test_gradients(case, n, m, kind, dtype):
    problem = case(n, m, queries=kind, keys=kind, dtype=dtype)
    for n_iter in (0, 1, 4):
        # a gradient small beside the terms it is the sum of keeps more of their roundings, in the readable form as well
        readable_error = battery.gradients(problem, n_iter, 0.5, readable.sinkhorn_attention_vjp)
        assert battery.gradients(problem, n_iter, 0.5) <= max(TOLERANCE[dtype], 2 * readable_error)


def test_gradients_of_scores_of_thousands(case):
    problem = case(70, 66, scale=30.0, keys="holes")
    assert (
        battery.gradients(problem, 3) <= 1e-10
    )  # as for the scores of ten thousand, and differences of such weights


# ------------------------------------------------------------------------------------------------- what only tests see


def test_the_order_of_threads_does_not_change_a_bit(emulated):
    case = battery.Case(emulated.asarray, 130, 65, queries="holes", keys="late", dtype="float32")
    map_ = amortizer(5, quadratic=3, moments=3)
    results = []
    for order in emulator.ORDERS:
        with emulator.threads_in_order(order):
            f = fast.asap_attention(*case.placed, map_, **case.placed_masks)
            g, vjp = fast.sinkhorn_attention_vjp(*case.placed, n_iter=2, **case.placed_masks)
            results.append([to_numpy(x) for x in (f, g, *vjp(g))])
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(x, y)


def test_nothing_of_the_size_of_the_scores_is_made(emulated, monkeypatch):
    made = []
    empty = stand_in.Namespace.empty
    monkeypatch.setattr(
        stand_in.Namespace,
        "empty",
        lambda self, shape, **kw: made.append(np.prod(shape)) or empty(self, shape, **kw),
    )
    n = 512
    case = battery.Case(emulated.asarray, n, n, d=8, p=8)
    map_ = amortizer(8, n_slices=2)
    fast.asap_attention(*case.placed, map_)
    fast.sinkhorn_attention_vjp(*case.placed, n_iter=1)[1](case.placed[2])
    assert 0 < max(made) <= battery.B * battery.H * n * n / 16


def test_inputs_are_not_written_to(emulated):
    case = battery.Case(emulated.asarray, 65, 70, queries="left", keys="holes")
    given = [*case.placed, *case.placed_masks.values()]
    before = [x.inner.copy() for x in given]
    battery.asap(case, amortizer(5, quadratic=3, moments=3))
    battery.gradients(case, 2)
    for x, y in zip(given, before, strict=True):
        np.testing.assert_array_equal(x.inner, y)


# ------------------------------------------------------------------------------------------- where the array form stays


def test_what_the_sort_cannot_hold_is_predicted_in_the_array_form(emulated, monkeypatch):
    monkeypatch.setattr(launch.Problems, "sort_size", lambda self: None)
    for dtype in ("float64", "float32"):
        case = battery.Case(emulated.asarray, 65, 70, queries="left", keys="holes", dtype=dtype)
        map_ = amortizer(5, quadratic=3)
        with stand_in.counted() as found:
            assert battery.asap(case, map_) <= TOLERANCE[dtype]
        assert found["launch", "attend"] == 1 and found["launch", "slices"] == 0


def test_sort_sizes(emulated):
    def size(n, m, dtype, limit=227):
        q, k = (emulated.asarray(np.zeros((1, s, 4), dtype)) for s in (n, m))
        problems = launch.Problems(q, k)
        problems.limit = limit * 1024
        return problems.sort_size()

    assert size(1, 1, "float32") == 2
    assert size(1024, 1025, "float32") == 2048
    assert size(16384, 64, "float32") == 16384
    assert size(16385, 64, "float32") is None
    assert size(8192, 64, "float64") == 8192
    assert size(8193, 64, "float64") is None
    assert size(16384, 64, "float32", limit=163) is None  # an A100


def test_families_without_slices(case):
    """The quadratic form is then all there is."""
    whole = amortizer(5, quadratic=3, moments=3)
    map_ = replace(whole, families=whole.families[1:], weights=whole.weights[:, 4:], statistics=None)
    for kind in (None, "left", "empty"):
        problem = case(65, 70, queries=kind, keys=kind)
        assert battery.prediction(problem, map_) <= TOLERANCE["float64"]
        assert battery.asap(problem, map_) <= TOLERANCE["float64"]


def test_what_has_no_kernel_is_predicted_in_the_array_form(emulated):
    """A family of one's own; more than one set of slices, or of moments."""

    @dataclass(frozen=True)
    class Length(Family, name="length of a test"):
        count = 1

        def features(self, q, k, *, query_mask=None, key_mask=None):
            mask = None if query_mask is None else query_mask[..., None, :]
            return centred(array_namespace(q).sum(q * q, axis=-1)[..., None, :], mask)

    del FAMILIES["length of a test"]
    slices, _, _, moments = amortizer(5, quadratic=3, moments=3).families
    for families in ((slices, Length()), (slices, slices), (slices, moments, moments)):
        F = sum(family.count for family in families)
        map_ = Amortizer(families, 0.1 * np.random.default_rng(0).standard_normal((battery.H, F)))
        for dtype in ("float64", "float32"):
            case = battery.Case(emulated.asarray, 65, 70, queries="left", dtype=dtype)
            with stand_in.counted() as found:
                assert battery.asap(case, map_) <= TOLERANCE[dtype]
            assert found["launch", "attend"] == 1 and found["launch", "dual"] == 0


def test_dimensions_that_shared_memory_cannot_hold_take_the_array_form(emulated, monkeypatch):
    monkeypatch.setattr(launch, "shared_limit", lambda *_: 4 * 1024)
    case = battery.Case(emulated.asarray, 9, 11, d=40, p=3, queries="left", keys="holes")
    with stand_in.counted() as found:
        assert battery.softmax(case) <= TOLERANCE["float64"]
        assert battery.sinkhorn(case) <= TOLERANCE["float64"]
        assert battery.asap(case, amortizer(40)) <= TOLERANCE["float64"]
        assert battery.gradients(case, 2) <= TOLERANCE["float64"]
    assert found["launch", "attend"] == found["launch", "lse"] == 0


def test_long_loops_take_the_array_form_as_long_as_it_fits(emulated, monkeypatch):
    monkeypatch.setattr(of_attention, "LAUNCH_BOUND", battery.B * battery.H * 64 * 64)
    for n, kernels_do in ((64, True), (65, False)):
        case = battery.Case(emulated.asarray, n, 64)
        with stand_in.counted() as found:
            assert battery.sinkhorn(case) <= TOLERANCE["float64"]
        assert (found["launch", "lse"] > 0) == kernels_do
    monkeypatch.setattr(of_attention, "STORABLE", battery.B * battery.H * 64 * 64)
    with stand_in.counted() as found:
        assert battery.sinkhorn(case) <= TOLERANCE["float64"]
    assert found["launch", "lse"] > 0


def test_the_kernels_can_be_done_without(emulated):
    case = battery.Case(emulated.asarray, 65, 70, queries="left")
    with kernels.array_forms(), stand_in.counted() as found:
        assert battery.softmax(case) <= TOLERANCE["float64"]
        assert battery.asap(case, amortizer(5)) <= TOLERANCE["float64"]
        assert battery.one_sided(case, amortizer(5)) <= TOLERANCE["float64"]
        assert battery.gradients(case, 2) <= TOLERANCE["float64"]
    assert not any(found["launch", name] for name in ("lse", "attend", "project", "pull", "gradient"))


def test_an_empty_batch(emulated):
    q = emulated.asarray(np.zeros((0, 2, 3, 4)))
    assert to_numpy(fast.softmax_attention(q, q, q)).shape == (0, 2, 3, 4)
    assert to_numpy(fast.asap_attention(q, q, q, amortizer(4))).shape == (0, 2, 3, 4)


def test_views_with_gaps_are_copied(emulated):
    whole = emulated.asarray(np.random.default_rng(0).standard_normal((battery.B, 9, battery.H, 4)))
    q = emulated.permute_dims(whole, (0, 2, 1, 3))
    found = fast.softmax_attention(q, q, q)
    expected = readable.softmax_attention(*(3 * [np.moveaxis(whole.inner, 2, 1)]))
    assert battery.error(found, expected) <= TOLERANCE["float64"]


# ------------------------------------------------------------------------------------- counts, and what is not finite


def test_asap_is_at_most_eight_launches_without_a_wait_or_transfer(emulated):
    case = battery.Case(emulated.asarray, 70, 66, queries="left", keys="holes", dtype="float32")
    for family, most in {"slices": 5, "moments": 7}.items():
        map_ = amortizer(5, **battery.FAMILIES[family])
        fast.asap_attention(*case.placed, map_, **case.placed_masks)  # its constants are then on the device
        with stand_in.counted() as found:
            fast.asap_attention(*case.placed, map_, **case.placed_masks)
        assert (found["launches"], found["waits"], found["transfers"]) == (most, 0, 0) and most <= 8
        with stand_in.counted() as found:
            fast_one_sided_attention(*case.placed, map_, **case.placed_masks)
        assert (found["launches"], found["waits"], found["transfers"]) == (most - 1, 0, 0)


def test_half_precision_is_not_cast_on_the_way(emulated):
    case, map_ = battery.Case(emulated.asarray, 9, 9, dtype="float16"), amortizer(5)
    fast.asap_attention(*case.placed, map_)
    with stand_in.counted() as found:
        fast.asap_attention(*case.placed, map_)
    assert (found["launches"], found["waits"], found["transfers"]) == (7, 0, 0)


def test_refining_costs_two_launches_an_iteration_and_a_pass_over_the_dual(emulated):
    case = battery.Case(emulated.asarray, 70, 66)
    map_ = amortizer(5, refine=2)
    assert battery.asap(case, map_) <= TOLERANCE["float64"]
    with stand_in.counted() as found:
        fast.asap_attention(*case.placed, map_)
    # that pass is three elementwise operations, which CuPy fuses into one launch, and the stand-in does not
    assert (found["launches"], found["waits"]) == (7 + 2 * (2 + 3), 0)
    with stand_in.counted() as found:
        fast.asap_attention(*case.placed, replace(map_, omega=None))
    assert found["launches"] == 7 + 2 * 2


def test_softmax_is_one_launch_and_sinkhorn_two_an_iteration_and_one(emulated):
    case = battery.Case(emulated.asarray, 9, 9)
    fast.softmax_attention(*case.placed)
    with stand_in.counted() as found:
        fast.softmax_attention(*case.placed)
        fast.sinkhorn_attention(*case.placed, n_iter=20)
    assert (found["launches"], found["waits"], found["transfers"]) == (1 + 41, 0, 0)


def test_backwards_launches_two_kernels_an_iteration_and_a_few_passes(emulated):
    case = battery.Case(emulated.asarray, 9, 9)

    def launches(n_iter):
        fast.sinkhorn_attention_vjp(*case.placed, n_iter=n_iter)
        with stand_in.counted() as found:
            _, vjp = fast.sinkhorn_attention_vjp(*case.placed, n_iter=n_iter)
            vjp(case.placed[2])
        return found["launches"], found["waits"]

    (ten, waits), (eleven, _) = launches(10), launches(11)
    assert (
        eleven - ten == 4 and waits == 2
    )  # two forward, two backward; a look at the output, one at the gradients
    assert ten <= (2 * 10 + 2) + (2 * 10 + 3) + 20


@pytest.mark.parametrize("where", range(3))
def test_a_result_that_is_not_finite_is_found_when_it_is_copied(device, where):
    tokens = [x.copy() for x in np.random.default_rng(0).standard_normal((3, 1, 2, 70, 4))]
    tokens[where][0, 1, 69, 2] = np.nan
    out = fast.softmax_attention(*map(device.asarray, tokens))
    with pytest.raises(FloatingPointError, match=r"softmax_attention: a result computed on .* is not finite"):
        to_numpy(out)
    assert np.isnan(to_numpy(out)).any()  # said once
    kernels.raise_if_not_finite()


def test_asap_and_sinkhorn_report_by_their_names(device):
    q = np.full((1, battery.H, 5, 4), np.inf)
    tokens = [device.asarray(q)] * 3
    fast.asap_attention(*tokens, amortizer(4))
    with pytest.raises(FloatingPointError, match=r"^asap_attention"):
        kernels.raise_if_not_finite()
    fast.sinkhorn_attention(*tokens)
    with pytest.raises(FloatingPointError, match=r"^sinkhorn_attention"):
        kernels.raise_if_not_finite()


def test_inside_another_operator_nothing_is_flagged_and_that_one_raises(device):
    @operator
    def outer(q: "... n d"):
        return fast.softmax_attention(q, q, q)

    with pytest.raises(ValueError, match="outer: q contains NaN"):
        outer(device.asarray(np.full((3, 2), np.nan)))
    kernels.raise_if_not_finite()


def test_wrong_arguments_are_refused_as_elsewhere(device):
    q = device.asarray(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="softmax_attention: k has shape"):
        fast.softmax_attention(q, device.asarray(np.zeros((2, 4))), q)
    with pytest.raises(ValueError, match="epsilon must be positive"):
        fast.sinkhorn_attention(q, q, q, epsilon=0.0)
    with pytest.raises(TypeError, match="must be an array"):
        fast.softmax_attention([1.0], q, q)


# --------------------------------------------------------------------------------------------- the emulator is strict


def emulated_kernel(body):
    code = f'extern __shared__ char shared[];\nextern "C" __global__ void kernel(float* x, int n) {{ {body} }}'
    return stand_in.RawModule(code=code).get_function("kernel")


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("if (threadIdx.x) __syncthreads();", "not all threads reach the barrier of line 3"),
        ("shared[4] = 0;", "more shared memory is written"),
        ("x[n] = 0;", "written past the end"),
        ("x[-1] = 0;", "written past the end"),
    ],
)
def test_the_emulator_finds(emulated, body, what):
    kernel = emulated_kernel(body)
    with pytest.raises(emulator.EmulationError, match=what):
        kernel((1,), (4,), (emulated.empty((4,), dtype="float32"), np.int32(4)), shared_mem=4)


def test_the_emulator_takes_arguments_of_the_right_type_alone(emulated):
    kernel = emulated_kernel("x[threadIdx.x] = n;")
    x = emulated.empty((4,), dtype="float32")
    kernel((1,), (4,), (x, np.int32(3)))
    np.testing.assert_array_equal(x.inner, 3)
    for wrong in ((x, np.int64(3)), (x,), (x, 3)):
        with pytest.raises(emulator.EmulationError):
            kernel((1,), (4,), wrong)
    with pytest.raises(emulator.EmulationError, match="were not asked for"):
        kernel((1,), (4,), (x, np.int32(3)), shared_mem=2**16)


def test_shared_memory_is_not_a_number_until_it_is_written(emulated):
    kernel = emulated_kernel("x[threadIdx.x] = reinterpret_cast<float*>(shared)[threadIdx.x];")
    x = emulated.empty((4,), dtype="float32")
    kernel((1,), (4,), (x, np.int32(3)), shared_mem=16)
    assert np.isnan(x.inner).all()


def test_every_file_of_the_text_is_part_of_a_build():
    folder = Path(build.__file__).parent
    assert {path.stem for path in folder.glob("*.cu")} == {*build.FORWARD, *build.BACKWARD}


@pytest.mark.slow
def test_a_wheel_has_the_text(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    root = Path(build.__file__).parents[3]
    built = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for part in (*build.FORWARD, *build.BACKWARD):
            assert archive.read(f"asap_ref/fast/kernels/{part}.cu").decode() == build._text(part)
