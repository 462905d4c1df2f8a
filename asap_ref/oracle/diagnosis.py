"""What a wrong array looks like: the few simple relations to the right one that name a mistake at once."""

from __future__ import annotations

import math

import numpy as np

LEAST_OF_FLOAT32, MOST_OF_FLOAT32 = 1e-10, 3e-6  # relative errors in float64 that float32 inside would explain
MOST_PLACES = 6  # that are listed
ROWS_LEAVE = 0.05  # of the error, when each row has got the factor that fits it best
NEAR_ONE = 0.1
CLOSE = 1e-6  # of the largest entry: how well a relation must hold to be named


def diagnose(case, name, found, expected, dtype):
    """Remarks about a wrong array as (text, flag or ""), most telling first; shapes agree."""
    finite = np.isfinite(found)
    if not finite.all():
        what = "NaN" if np.isnan(found).any() else "infinite"
        return [(f"{int((~finite).sum())} of {found.size} entries are {what}", "")]
    close = max(CLOSE, 20 * {"float64": 0, "float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}[dtype])
    scale = max(float(np.abs(expected).max(initial=0)), 1e-300)

    padding = case.must_be_zero.get(name)

    def centred(x):
        return _centred(x, padding)

    def same(a, b):
        return bool(np.abs(a - b).max(initial=0) <= close * scale)

    free = name in {output for output, _ in case.rules["gauge"]}  # a constant has been added to it
    if np.any(expected) and not np.any(centred(found) if free else found):
        return [("it is the same for all tokens" if free else "it is zero everywhere", "")]
    remarks = []
    if not same(found, expected):
        remarks = [
            *_relation(case, found, expected, same, centred if free else None),
            *_order(found, expected, same),
            *_rows(case, found, expected),
        ]
        remarks += _intermediates(case, name, found, close)
    if not remarks:
        remarks += [(text, "") for text in _where(found, expected, free)]
    error = np.abs(found - expected).max() / scale
    if dtype == "float64" and LEAST_OF_FLOAT32 < error < MOST_OF_FLOAT32:
        text = "an error of this size is that of float32: something is computed or stored in float32"
        remarks.append((text, "float32_inside"))
    return remarks


def _centred(x, padding=None):
    """Less its mean over the valid entries, and zero at padding."""
    if not x.ndim:
        return x
    valid = np.ones(x.shape, bool) if padding is None else ~padding
    mean = np.where(valid, x, 0).sum(-1, keepdims=True) / np.maximum(valid.sum(-1, keepdims=True), 1)
    return np.where(valid, x - mean, 0)


def _relation(case, found, expected, same, centred):
    """Look for the right array times, or plus, a number that we know."""
    numbers = _known_numbers(case)
    if expected.size < 2 or not np.any(expected):
        return
    x, y = (centred(found), centred(expected)) if centred else (found, expected)
    factor = float(np.sum(x * y) / max(np.sum(y * y), 1e-300))
    if same(x, factor * y) and not same(x, y):
        meaning = _name_of(factor, {"-1 (a sign)": -1.0, **numbers})
        yield f"it is the right array times {factor:.6g}{meaning}", _flag_of(meaning)
        return
    shift = float(np.mean(found - expected))
    if same(found, expected + shift):
        logs = {f"log({key})": math.log(value) for key, value in numbers.items() if value > 0}
        epsilon = case.arguments.get("epsilon", 1.0)
        scaled = {f"epsilon {key}": epsilon * value for key, value in logs.items()}
        signed = {**scaled, **{f"-{key}": -value for key, value in scaled.items()}, "epsilon": epsilon}
        meaning = _name_of(shift, signed)
        yield f"it is the right array plus the constant {shift:.6g}{meaning}", _flag_of(meaning)
    elif found.ndim and found.shape[-1] > 1:
        shifts = np.mean(found - expected, axis=-1, keepdims=True)
        if same(found, expected + shifts):
            yield "it is the right array plus a constant for each row: is it centred over its tokens?", "centring"


def _known_numbers(case):
    """Numbers of a problem by name, as wrong factors are made of them."""
    numbers = {}
    epsilon = case.arguments.get("epsilon", 1.0)
    if epsilon != 1:
        numbers |= {"epsilon": epsilon, "1/epsilon": 1 / epsilon, "epsilon²": epsilon**2}
    shapes = {name: x.shape for name, x in case.inputs.items()}
    if "q" in shapes and len(shapes["q"]) > 1:
        d = shapes["q"][-1]
        numbers |= {"sqrt(d)": d**0.5, "1/sqrt(d)": d**-0.5, "d^(1/4)": d**0.25, "d^(-1/4)": d**-0.25}
        numbers |= {"n/m": shapes["q"][-2] / shapes["k"][-2]}
    if "scores" in shapes:
        n, m = shapes["scores"][-2:]
        numbers |= {"n/m": n / m, "m/n": m / n, "n": n, "m": m, "1/n": 1 / n, "1/m": 1 / m}
    return numbers | {"2": 2.0, "1/2": 0.5}


def _name_of(value, numbers):
    named = [key for key, number in numbers.items() if number != 0 and math.isclose(value, number, rel_tol=1e-4)]
    return f" = {named[0]}" if named else ""


def _flag_of(meaning):
    """Flag for a factor or constant that has been given a name."""
    for part, flag in (("epsilon log", "unequal_lengths"), ("n/m", "unequal_lengths"), ("m/n", "unequal_lengths"),
                       ("epsilon", "epsilon_scaling"), ("(d)", "score_scale"), ("(1/4)", "slice_scale"),
                       ("(-1/4)", "slice_scale"), ("sign", "sign")):  # fmt: skip
        if part in meaning:
            return flag
    return ""


def _order(found, expected, same):
    """Look for the right values in another order, or turned."""
    if found.ndim >= 2 and found.shape[-1] == found.shape[-2] and same(found.swapaxes(-1, -2), expected):
        text = "it is the transpose of the right array: rows and columns are swapped"
        yield text, "row_instead_of_column"
    elif found.ndim and found.shape[-1] > 1 and same(np.sort(found, -1), np.sort(expected, -1)):
        text = "it has the right values in another order: put sorted results back in the order of the input"
        yield text, "sort_order"


def _rows(case, found, expected):
    """Look for attention whose rows are right but for a factor each: an error of the query dual."""
    if not case.operator.endswith("attention") or found.ndim < 2 or found.shape[-1] < 2:
        return
    squares = (expected**2).sum(-1, keepdims=True)
    factors = np.where(squares > 0, (found * expected).sum(-1, keepdims=True) / np.maximum(squares, 1e-300), 1.0)
    if np.abs(factors - 1).max(initial=0) > NEAR_ONE:
        return
    error = np.abs(found - expected).max(initial=0)
    if np.ptp(factors) > 0 and np.abs(found - factors * expected).max(initial=0) <= ROWS_LEAVE * error:
        flag = "large_logits" if "large_logits" in case.flags else ""
        yield (
            (
                "each row is right but for a factor of its own, near 1: rows of the plan do not sum to 1. Take the "
                "last half step as softmax((g + S) / epsilon) v; exp((f + g + S) / epsilon) v has the roundings of f"
            ),
            flag,
        )


def _intermediates(case, name, found, close):
    """Look for what stands in an earlier place of the same computation."""
    for key, steps in case.intermediates.items():
        if not key.startswith(name) or steps.ndim != found.ndim + 1:
            continue
        for t, step in enumerate(steps):
            centred = [x - x.mean(-1, keepdims=True) for x in (found, step)]
            if step.shape == found.shape and np.abs(centred[0] - centred[1]).max() <= close * (
                np.abs(step).max() + 1e-300
            ):
                if t < len(steps) - 1:
                    yield f"it is {key}[{t}]: the value after {t} of {len(steps) - 1} iterations", "not_converged"
                return


def _where(found, expected, free):
    """Look whether it is wrong in a part only."""
    deviation = found - expected
    if free and deviation.ndim:
        deviation = deviation - np.median(deviation, axis=-1, keepdims=True)
    wrong = np.abs(deviation) > 1e-3 * np.abs(deviation).max()
    for axis, what in ((-1, "last axis"), (-2, "last but one axis")):
        if found.ndim >= -axis and found.shape[axis] > 2:
            others = tuple(i for i in range(found.ndim) if i != found.ndim + axis)
            lines = np.flatnonzero(wrong.any(axis=others))
            if len(lines) <= found.shape[axis] // 2:
                some = ", ".join(map(str, lines[:MOST_PLACES])) + (", ..." if len(lines) > MOST_PLACES else "")
                yield f"it is wrong only at {some} of the {what} ({found.shape[axis]} long)"
                return
