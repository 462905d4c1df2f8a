"""Mistakes tried out: what comes out of the right formulas if one argument, mask or number is another.

If that is what an implementation returned, the mistake has been found, and not only guessed: "it is what n_iter = 4
gives", "what comes out if the mask is taken for a length", "if k is rounded to TF32".
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from asap_ref.oracle import truth
from asap_ref.oracle.otherwise import written_otherwise
from asap_ref.oracle.recipe import AXES, rounded

ENOUGH = 0.02  # of the error: what may remain of it
LARGEST = 300_000  # numbers: larger problems are not tried
PER_OPERATOR = 4  # failing cases of an operator that are tried


def explain(case, dtype, found):
    """(sentence, flag) of the mistakes that give what was found, ``{name: array}`` of wrong outputs or gradients."""
    if case.operator not in AXES or sum(x.size for x in case.inputs.values()) > LARGEST:
        return []
    if not all(np.isfinite(x).all() for x in found.values()):
        return []
    backward = all(name not in case.outputs for name in found)
    explained = []
    for flag, sentence, values_of in _tried(case, dtype, backward):
        try:
            with np.errstate(all="ignore"):
                values = values_of()
        except (ValueError, FloatingPointError, TypeError):  # it cannot be computed so
            continue
        if all(_is(case, dtype, name, x, values.get(name)) for name, x in found.items()):
            explained.append((sentence, flag))
    return explained[:3]


def _tried(case, dtype, backward):
    """(flag, sentence, function that gives the values) of every mistake: another input, or another formula."""
    for flag, sentence, inputs, arguments, cotangents in hypotheses(case, dtype, backward):
        if backward:
            values_of = partial(truth.gradients_of, case.operator, inputs, arguments, cotangents)
        else:
            values_of = partial(truth.outputs_of, case.operator, list(case.outputs), inputs, arguments)
        yield flag, sentence, values_of
    if not backward:
        yield from written_otherwise(case)


def _is(case, dtype, name, found, value):
    backward = name not in case.outputs
    expected = (case.gradients if backward else case.outputs)[name]
    if value is None or value.shape != found.shape:
        return False
    rule = case.rules["gradients" if backward else "outputs"][name]
    free = not backward and name in dict(case.rules["gauge"])
    padding = case.must_be_zero.get(f"gradient of {name}" if backward else name, np.zeros(found.shape, bool))

    def distance(x, y):
        difference = np.where(padding, 0.0, x - y)
        if free and difference.ndim:
            valid = np.maximum((~padding).sum(-1, keepdims=True), 1)
            difference = np.where(padding, 0.0, difference - difference.sum(-1, keepdims=True) / valid)
        return float(np.abs(difference).max(initial=0)) / rule["scale"]

    error = distance(found, expected)
    allowed = max(ENOUGH * error, min(rule["tolerance"].get(dtype, 0.0), error / 4))
    return distance(found, value) <= allowed


def hypotheses(case, dtype, backward):
    """(flag, sentence, inputs, arguments, cotangents) of every mistake that the case admits."""
    x, a, c = case.inputs, case.arguments, list(case.cotangents.values())
    for flag, sentence, arguments in _other_arguments(a):
        yield flag, sentence, x, arguments, c
    for flag, sentence, inputs, arguments in _other_axis(x, a):
        yield flag, sentence, inputs, arguments, c
    for flag, sentence, inputs in _other_arrays(case, x):
        yield flag, sentence, inputs, a, c
    for flag, sentence, inputs in _other_masks(x):
        yield flag, sentence, inputs, a, c
    for flag, short in _shorter(dtype):
        floats = [name for name, y in x.items() if y.dtype.kind == "f"]
        groups = [[name] for name in floats] + [[n for n in floats if n in "qk"], floats]
        for names in groups:
            if len(names) == 1 or len(floats) > 1:
                inputs = x | {name: shorten(x[name], short) for name in names}
                yield flag, f"it is what comes out if {' and '.join(names)} are rounded to {short}", inputs, a, c
        if backward:
            weights = [shorten(y, short) for y in c]
            yield flag, f"it is what comes out if the cotangents are rounded to {short}", x, a, weights


def _other_arguments(a):
    """Arguments that are off by one, upside down, or not looked at."""
    changes = []
    if "n_iter" in a:
        t = a["n_iter"]
        counts = {t + 1, t - 1, t + 2, t - 2, 2 * t, t // 2, 0} - {t}
        changes += [
            ("softmax_start" if t == 0 else "not_converged", "n_iter", n) for n in sorted(counts) if n >= 0
        ]
    if "refine" in a:
        r = a["refine"]
        changes += [("refine", "refine", n) for n in (r + 1, r - 1, 0) if n >= 0 and n != r]
    if a.get("epsilon", 1.0) != 1.0:
        e = a["epsilon"]
        changes += [("epsilon_scaling", "epsilon", other) for other in (1.0, 1 / e, e * e, math.sqrt(e))]
    if "onto" in a:
        changes.append(("row_instead_of_column", "onto", "query" if a["onto"] == "key" else "key"))
    if "cost" in a:
        changes.append(("squared_cost_half", "cost", "bilinear" if a["cost"] == "sqeuclidean" else "sqeuclidean"))
    if "hard" in a:
        changes.append(("soft_sort", "hard", not a["hard"]))
    for name, flag in (("temperature", "soft_sort"), ("inverse_temperature", "slice_weights")):
        if name in a:
            changes += [(flag, name, factor * a[name]) for factor in (0.5, 2.0)] + [(flag, name, 1.0)]
    for flag, name, value in changes:
        yield flag, f"it is what {name} = {value} gives; {a[name]} was asked for", a | {name: value}


def _other_axis(x, a):
    """A c-transform whose sum runs over the other axis of the scores: its shape is right where they are square.

    -epsilon LSE_j((f_i + S_ij) / epsilon) is the transform of zero duals onto the other side, under scores S + f.
    """
    S = x.get("scores")
    if "onto" in a and "dual" in x and S.shape[-1] == S.shape[-2]:
        other = "query" if a["onto"] == "key" else "key"
        shifted = S + (x["dual"][..., :, None] if other == "query" else x["dual"][..., None, :])
        inputs = x | {"scores": shifted, "dual": np.zeros_like(x["dual"])}
        sentence = f"it is what a sum over the other axis gives: over {'keys' if other == 'query' else 'queries'}"
        yield "row_instead_of_column", sentence, inputs, a | {"onto": other}


def _other_arrays(case, x):
    """Arrays that are not looked at, exchanged, turned, negated, or scaled."""
    if case.operator == "sinkhorn" and "init" not in x:
        zero = np.zeros(x["scores"].shape[:-1])
        sentence = "it is what comes out if the iterations start from a zero dual, and not from that of softmax"
        yield "softmax_start", sentence, x | {"init": zero}
    for name, flag in (("init", "init"), ("x_weights", "weights"), ("y_weights", "weights")):
        if name in x:
            yield (
                flag,
                f"it is what comes out if {name} is not looked at",
                {k: y for k, y in x.items() if k != name},
            )
    if "x_weights" in x and "y_weights" in x:
        without = {k: y for k, y in x.items() if not k.endswith("weights")}
        yield "weights", "it is what comes out if the weights are not looked at", without
    for name in ("q", "scores"):
        if name in x:
            yield "sign", f"it is what -{name} gives", x | {name: -x[name]}
    if "q" in x:
        root = math.sqrt(x["q"].shape[-1])
        for factor, what in ((root, "without the division by sqrt(d)"), (1 / root, "divided by sqrt(d) twice")):
            yield "score_scale", f"it is what scores {what} give", x | {"q": factor * x["q"]}
    if "scores" in x and x["scores"].shape[-1] == x["scores"].shape[-2]:
        yield (
            "row_instead_of_column",
            "it is what scores turned give",
            x | {"scores": x["scores"].swapaxes(-1, -2)},
        )
    if {"query_dual", "key_dual"} <= set(x) and x["query_dual"].shape == x["key_dual"].shape:
        duals = {"query_dual": x["key_dual"], "key_dual": x["query_dual"]}
        yield "key_dual_for_query_dual", "it is what the duals exchanged give", x | duals
    for name, flag in (
        ("weights", "head_weights"),
        ("directions", "head_directions"),
        ("basis", "head_directions"),
    ):
        if name in x and (name == "weights" or x[name].ndim == 3) and len(x[name]) > 1:
            same = np.broadcast_to(x[name][:1], x[name].shape).copy()
            yield flag, f"it is what comes out if all heads have the {name} of the first", x | {name: same}


def _other_masks(x):
    """Masks that are not looked at, taken for a length, or taken from another head or sequence."""
    masks = {name: y for name, y in x.items() if name.endswith("mask")}
    clean = {name: np.nan_to_num(y, nan=0.0) if y.dtype.kind == "f" else y for name, y in x.items()}
    for name, mask in masks.items():
        yield (
            "padding",
            f"it is what comes out if {name} is not looked at",
            {k: y for k, y in x.items() if k != name},
        )
        prefix = np.arange(mask.shape[-1]) < mask.sum(-1, keepdims=True)
        flag = "left_padding" if (np.diff(mask.astype(int), axis=-1) >= 0).all() else "mask_holes"
        yield flag, f"it is what comes out if {name} is taken for a length", clean | {name: prefix}
        reach = np.maximum.accumulate(mask[..., ::-1], axis=-1)[..., ::-1]  # all up to the last valid token
        yield (
            "mask_holes",
            f"it is what comes out if {name} ends at its last token and has no holes",
            clean | {name: reach},
        )
        if mask.ndim > 2 and mask.shape[-2] > 1:
            first = np.broadcast_to(mask[..., :1, :], mask.shape).copy()
            yield "mask_per_head", f"it is what the {name} of the first head gives for all", clean | {name: first}
        if mask.ndim > 1 and len(mask) > 1:
            first = np.broadcast_to(mask[:1], mask.shape).copy()
            yield (
                "leading_axes",
                f"it is what the {name} of the first sequence gives for all",
                clean | {name: first},
            )
    if len(masks) == 2:
        lengths = {name: np.arange(mask.shape[-1]) < mask.sum(-1, keepdims=True) for name, mask in masks.items()}
        yield "mask_holes", "it is what comes out if masks are taken for lengths", clean | lengths
        without = {k: y for k, y in x.items() if k not in masks}
        yield "padding", "it is what comes out without masks", without
        if all(mask.ndim > 1 and len(mask) > 1 for mask in masks.values()):
            first = {name: np.broadcast_to(mask[:1], mask.shape).copy() for name, mask in masks.items()}
            yield "leading_axes", "it is what the masks of the first sequence give for all", clean | first
        (one, first), (other, second) = masks.items()
        if first.shape == second.shape:
            yield "padding", "it is what the two masks exchanged give", clean | {one: second, other: first}
    yield from _tiles(clean, masks)


def _tiles(x, masks):
    """Keys, or queries, of which the last tile is not looked at."""
    if masks:
        return
    for size in (16, 32, 64, 128):
        for array, name in (("k", "key_mask"), ("q", "query_mask")):
            if array in x and x[array].shape[-2] > size and x[array].shape[-2] % size:
                n = x[array].shape[-2]
                seen = np.broadcast_to(np.arange(n) < n // size * size, x[array].shape[:-1])
                side = "keys" if array == "k" else "queries"
                sentence = f"it is what comes out if only the {n // size * size} first of {n} {side} are seen"
                yield "tile_edges", sentence, x | {name: seen}


def _shorter(dtype):
    """(flag, format) of what an array may have been rounded to."""
    if dtype == "float64":
        return [("float32_inside", "float32"), ("full_mantissa", "bfloat16"), ("full_mantissa", "float16")]
    if dtype == "float32":
        return [("full_mantissa", "TF32"), ("full_mantissa", "bfloat16"), ("full_mantissa", "float16")]
    return []


def shorten(x, short):
    """Round to a shorter format; TF32 has the 11 bits of float16 and the range of float32."""
    if short != "TF32":
        return rounded(x, short)
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 2.0**11) / 2.0**11, exponent)
