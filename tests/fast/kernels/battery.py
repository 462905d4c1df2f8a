"""What the kernels must do, as plain functions of a device: the tests run them, and so does whoever seeds faults.

A check compares with the readable forms in float64, on tokens whose padding is NaN, and returns the largest error
relative to the largest entry; a result that is not finite, or of another shape or dtype, raises AssertionError.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from asap_ref.calibration.fit import fit_amortizer
from asap_ref.fast import attention as fast
from asap_ref.fast import kernels
from asap_ref.fast.kernels.launch import Problems
from asap_ref.fast.prediction import predicted_dual
from asap_ref.method import attention as readable
from asap_ref.method.transport import attention_scores, entropic_c_transform
from asap_ref.rivals.one_sided import fast_one_sided_attention, one_sided_attention
from asap_ref.support.arrays import to_numpy
from asap_ref.support.masks import without_padding

SIZES = (1, 3, 63, 64, 65, 127, 130, 257)  # at the edges of tiles
PAIRS = [*((n, n) for n in SIZES), (1, 65), (65, 1), (3, 257), (257, 64), (130, 63), (127, 257)]
MASKS = (None, "left", "late", "holes", "empty")
B, H = 3, 2


def mask_of(kind, n, rng):
    """(B, n), or None."""
    if kind is None:
        return None
    mask = np.ones((B, n), bool)
    if kind == "left":
        for row in mask:
            row[: rng.integers(0, n)] = False
    elif kind == "late":  # the first tile holds no token
        mask[:, : min(65, n - 1)] = False
    elif kind == "holes":
        mask = rng.random((B, n)) < 0.6
    elif kind == "empty":
        mask[1], mask[2, : n // 2] = False, False
    return mask


@dataclass
class Case:
    """Queries, keys, values with NaN at padding, and their masks: on the host in float64, and on a device."""

    place: Any
    n: int = 65
    m: int = 65
    d: int = 5
    p: int = 3
    queries: Any = None  # kinds of masks
    keys: Any = None
    dtype: str = "float64"
    scale: float = 1.0
    ties: bool = False
    seed: int = 0

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        q, k = (self.scale * rng.standard_normal((B, H, s, self.d)) for s in (self.n, self.m))
        tokens = [np.round(x) if self.ties else x for x in (q, k)] + [rng.standard_normal((B, H, self.m, self.p))]
        masks = [mask_of(kind, s, rng) for kind, s in ((self.queries, self.n), (self.keys, self.m))]
        self.set(tokens, *(None if mask is None else mask[:, None] for mask in masks))

    def set(self, tokens, query_mask, key_mask):
        """Take these tokens, rounded to the dtype, and these masks."""
        host = [x.astype(numpy_dtype(self.dtype)) for x in tokens]
        for x, mask in zip(host, (query_mask, key_mask, key_mask), strict=True):
            if mask is not None:
                x[~np.broadcast_to(mask, x.shape[:-1])] = np.nan
        self.wide, self.placed = [x.astype(np.float64) for x in host], [self.place(x) for x in host]
        names = ("query_mask", "key_mask")
        given = {name: mask for name, mask in zip(names, (query_mask, key_mask), strict=True) if mask is not None}
        self.masks, self.placed_masks = given, {name: self.place(mask) for name, mask in given.items()}


def numpy_dtype(name):
    """NumPy's dtype of that name; bfloat16 is that of ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def error(found, expected, dtype=None):
    """Largest difference over the largest expected entry."""
    assert dtype is None or str(found.dtype) == dtype
    found = to_numpy(found).astype(np.float64)
    assert found.shape == expected.shape and np.all(np.isfinite(found)), "shape, or not finite"
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-300))


# --------------------------------------------------------------------------------------------------- attentions


def softmax(case):
    """The attend kernel alone."""
    found = fast.softmax_attention(*case.placed, **case.placed_masks)
    return error(found, readable.softmax_attention(*case.wide, **case.masks), case.dtype)


def sinkhorn(case, n_iter=3, epsilon=1.0):
    """The lse kernel onto both sides, and attend."""
    settings = {"n_iter": n_iter, "epsilon": epsilon}
    found = fast.sinkhorn_attention(*case.placed, **settings, **case.placed_masks)
    return error(found, readable.sinkhorn_attention(*case.wide, **settings, **case.masks), case.dtype)


def half_step(case, epsilon=1.0):
    """The lse kernel onto keys from a dual, relative to the largest dual."""
    dual = np.random.default_rng(1).standard_normal((B, H, case.n))
    dual[0, 0, :3] = 30.0  # one or a few tokens that outweigh the others
    masks = {"query_mask": None, "key_mask": None} | case.placed_masks
    problems = Problems(*case.placed, **masks)
    real = np.dtype(problems.real)
    found = problems.key_dual(case.place(dual.astype(real)), epsilon)
    q, k, _ = without_padding(*case.wide, case.masks.get("query_mask"), case.masks.get("key_mask"))
    S = attention_scores(q, k)
    dual = dual.astype(real).astype(np.float64)
    expected = entropic_c_transform(S, dual, onto="key", epsilon=epsilon, **case.masks)
    return error(found, expected, problems.real)


@functools.cache
def amortizer(d, n_slices=4, **settings):
    """An amortizer of H heads, with weights that nothing vanishes in."""
    tokens = np.random.default_rng(5).standard_normal((2, 4, H, 24, d))
    return fit_amortizer([tuple(tokens)], n_slices=n_slices, n_iter=3, **settings)


FAMILIES = {
    "slices": {"cumulants": False},
    "cumulants": {},
    "quadratic": {"quadratic": 3},
    "moments": {"quadratic": 3, "moments": 3},
    "moments alone": {"cumulants": False, "moments": 5},
}


def asap(case, amortizer):
    """Prediction, lse and attend."""
    found = fast.asap_attention(*case.placed, amortizer, **case.placed_masks)
    return error(found, readable.asap_attention(*case.wide, amortizer, **case.masks), case.dtype)


def one_sided(case, amortizer):
    """Prediction from exchanged sides, and attend."""
    found = fast_one_sided_attention(*case.placed, amortizer, **case.placed_masks)
    return error(found, one_sided_attention(*case.wide, amortizer, **case.masks), case.dtype)


def prediction(case, amortizer):
    """The predicted dual, centred over tokens, relative to the largest."""
    found = predicted_dual(*case.placed[:2], amortizer, **case.placed_masks)
    q, k, _ = without_padding(*case.wide, case.masks.get("query_mask"), case.masks.get("key_mask"))
    expected = amortizer.predict(q, k, **case.masks)
    mask = np.broadcast_to(case.masks.get("query_mask", True), expected.shape)
    found = to_numpy(found).astype(np.float64)
    assert np.all(found[~mask] == 0)
    mean = np.sum(found, axis=-1, keepdims=True) / np.maximum(np.sum(mask, axis=-1, keepdims=True), 1)
    if "key_mask" in case.masks:  # without keys there is nothing to predict from, and nothing to attend to
        mask = mask & np.any(case.masks["key_mask"], axis=-1)[..., None]
    return error(np.where(mask, found - mean, 0.0), np.where(mask, expected, 0.0))


def gradients(case, n_iter, epsilon=1.0, function_vjp=None):
    """Output and gradients of Sinkhorn attention: the larger of their errors, those of gradients over all three.

    One of the three may vanish, as that of a single query does. With a function its errors are asked for, in NumPy.
    """
    d_out = np.random.default_rng(2).standard_normal((B, H, case.n, case.p)).astype(case.dtype)
    settings = {"n_iter": n_iter, "epsilon": epsilon}
    if function_vjp:
        out, vjp = function_vjp(*(x.astype(case.dtype) for x in case.wide), **settings, **case.masks)
        found = vjp(d_out)
    else:
        out, vjp = fast.sinkhorn_attention_vjp(*case.placed, **settings, **case.placed_masks)
        found = vjp(case.place(d_out))
    expected, expected_vjp = readable.sinkhorn_attention_vjp(*case.wide, **settings, **case.masks)
    wanted = expected_vjp(d_out.astype(np.float64))
    assert all(str(x.dtype) == case.dtype and x.shape == y.shape for x, y in zip(found, wanted, strict=True))
    joined = np.concatenate([to_numpy(x).astype(np.float64).reshape(-1) for x in found])
    return max(error(out, expected, case.dtype), error(joined, np.concatenate([y.reshape(-1) for y in wanted])))


# ---------------------------------------------------------------------------------------- what seeded faults must fail


def checks(place):
    """(name, function that returns an error in float64) of a short run with every line of the kernels at work."""
    cases = {
        "65": Case(place, 65, 130, queries="left", keys="late"),
        "130": Case(place, 130, 65, queries="late", keys="empty"),
        "3": Case(place, 3, 257, keys="holes"),
        "large": Case(place, 70, 66, d=70, p=68, queries="holes"),
        "steep": Case(place, 130, 130, scale=6.0),
    }
    for name, case in cases.items():
        yield f"softmax {name}", lambda case=case: softmax(case)
        yield f"sinkhorn {name}", lambda case=case: sinkhorn(case, 2, epsilon=0.5)
        yield f"half step {name}", lambda case=case: half_step(case)
        yield f"gradients {name}", lambda case=case: gradients(case, 2, epsilon=0.7)
        of_slices = 70 if name == "large" else 4
        for family in ("slices", "moments"):
            map_ = amortizer(case.d, of_slices, **FAMILIES[family])
            yield f"prediction, {family}, {name}", lambda case=case, map_=map_: prediction(case, map_)
            yield f"one-sided, {family}, {name}", lambda case=case, map_=map_: one_sided(case, map_)
    huge = Case(place, 66, 70, queries="holes", scale=60.0)
    yield "sinkhorn of scores of ten thousand", lambda: sinkhorn(huge, 2)
    yield "flag", lambda: flagged(place)
    for name in OVERFLOWS:
        yield f"overflow: {name}", lambda name=name: overflow(place, name)


def flagged(place):
    """0 if a result that is not finite is found, 1 if not."""
    case = Case(place, 5, 5)
    case.placed[2] = place(np.where(np.arange(5)[:, None] == 4, np.inf, case.wide[2]))
    fast.softmax_attention(*case.placed)
    try:
        kernels.raise_if_not_finite()
    except FloatingPointError:
        return 0.0
    return 1.0


# Finite tokens, 2 queries and 40 keys, of so large a scale that all scores overflow, or those of one key do; or, where
# the other side is so small that scores do not, one token on a slice, or one query times itself.
OVERFLOWS = {
    "softmax of scores": (fast.softmax_attention, 1e200, -1e200, {}),
    "sinkhorn of scores": (fast.sinkhorn_attention, 1e200, -1e200, {"n_iter": 2}),
    "sinkhorn of scores from softmax's start": (fast.sinkhorn_attention, 1e200, -1e200, {"n_iter": 0}),
    "sinkhorn of the scores of one key": (fast.sinkhorn_attention, 1e200, "far", {"n_iter": 2}),
    "a query on a slice": (fast.asap_attention, "a query", 1e-308, {}),
    "a key on a slice": (fast.asap_attention, 1e-308, "a key", {}),
    "a query's square": (fast.asap_attention, "an axis", 1e-160, {"sign": 1.0}),
    "a query's square, negative": (fast.asap_attention, "an axis", 1e-160, {"sign": -1.0}),
}


def overflowing(name):
    """Function, tokens and settings of an overflow of float64."""
    function, *scales, settings = OVERFLOWS[name]
    settings, map_ = dict(settings), amortizer(5, 1, cumulants=False)
    if "sign" in settings:
        map_ = amortizer(5, 1, cumulants=False, quadratic=3)
        map_ = replace(map_, weights=settings.pop("sign") * map_.weights)
    if function is fast.asap_attention:
        settings["amortizer"] = map_
    tokens = []
    for scale, n in zip(scales, (2, 40), strict=True):
        x = np.random.default_rng(n).standard_normal((1, H, n, 5))
        if not isinstance(scale, str):
            x = scale * np.abs(x)
        elif scale == "far":
            x = 1e-200 * x
            x[..., 1, :] = -1e200
        elif scale == "an axis":
            x[..., 1, :] = 1e160 * np.eye(5)[0]
        else:
            x[..., 1, :] = 1.7e308 * np.sign(np.asarray(map_.families[0].directions)[:, 0])
        tokens.append(x)
    return function, [*tokens, np.ones((1, H, 40, 3))], settings


def overflow(place, name):
    """0 if an overflow is found, 1 if not."""
    function, tokens, settings = overflowing(name)
    function(*map(place, tokens), **settings)
    try:
        kernels.raise_if_not_finite()
    except FloatingPointError:
        return 0.0
    return 1.0
