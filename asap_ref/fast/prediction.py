"""The prediction made fast: `Amortizer.predict` up to a constant, with the fewest passes.

Each family of features is weighed in its fast form (form.py), if it has one: slices by one sort and one gather
(slices.py), polynomials as one quadratic form of the query (quadratic_form.py).

Shapes: q (..., H, n, d), k (..., H, m, d) -> query dual (..., H, n). On NumPy the problems are spread over threads,
in pieces; on CuPy kernels take over (kernels/prediction.py), where they have the families; elsewhere the
arrays are whole.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from asap_ref.fast import kernels
from asap_ref.fast.form import fast_form
from asap_ref.fast.quadratic_form import QuadraticForm
from asap_ref.fast.slices import WeightedSlices
from asap_ref.fast.threads import cut, even_step, flat_mask, spread
from asap_ref.support.arrays import one_pass
from asap_ref.support.family import check_weights
from asap_ref.support.masks import keep, keep_tokens, queries_with_a_key
from asap_ref.support.trees import of_heads

PIECE = 2**18  # numbers of the largest array of a piece
WORTH_A_THREAD = 2**16  # numbers in what a thread is called for: a piece is many short calls of NumPy


def fast_forms(amortizer, d):
    """Make the fast forms of an amortizer's families, for tokens of dimension d; quadratic ones add up to one."""
    forms, start = [], 0
    weights = np.asarray(amortizer.weights, dtype=np.float64)
    for family in amortizer.families:
        forms.append(fast_form(family, weights[:, start : start + family.count], d))
        start += family.count
    quadratic = [form for form in forms if isinstance(form, QuadraticForm)]
    others = [form for form in forms if not isinstance(form, QuadraticForm)]
    return (*others, *([functools.reduce(lambda x, y: x + y, quadratic)] if quadratic else []))


def predicted_dual(q, k, amortizer, *, query_mask=None, key_mask=None, p=None):
    """Query dual up to a constant, zero at padding; q and k are zero there already.

    On CuPy padding may hold anything, halves are computed in float32, and ``p`` is the dimension of the values.
    """
    check_weights(q, amortizer.families, amortizer.weights)
    on_kernels = kernels.can_launch(q)
    like = kernels.number_like(q) if on_kernels else q
    forms = amortizer.placed(like, "fast forms", lambda: fast_forms(amortizer, q.shape[-1]))
    if on_kernels:
        if constants := _for_kernels(forms):
            f_hat = kernels.predict(q, k, *constants, query_mask=query_mask, key_mask=key_mask, p=p)
            if f_hat is not None:
                return f_hat
        q, k = (keep_tokens(kernels.computed_in(x), mask) for x, mask in ((q, query_mask), (k, key_mask)))
    if not isinstance(q, np.ndarray):
        return _dual(q, k, forms, query_mask, key_mask)
    return _in_pieces(q, k, forms, query_mask, key_mask)


def _in_pieces(q, k, forms, query_mask, key_mask):
    """The dual on NumPy, on threads, in pieces whose largest array stays in the cache.

    A piece is some sequences, or where one is too large, some of its heads.
    """
    leading, (H, n) = q.shape[:-2], q.shape[-3:-1]
    count = math.prod(leading[:-1])
    q, k = (x.reshape(count, H, *x.shape[-2:]) for x in (q, k))
    masks = [flat_mask(mask, leading, count, H) for mask in (query_mask, key_mask)]
    dual = np.empty((count, H, n), q.dtype)
    size = max(n * max(q.shape[-1], *(form.width for form in forms)), 1)
    step = max(min(PIECE // size, even_step(count * H, size, PIECE, WORTH_A_THREAD)), 1)  # heads of sequences
    heads = cut(H, step)
    of_those = [forms] if len(heads) == 1 else [of_heads(forms, some) for some in heads]

    def fill(piece):
        own, own_forms = piece
        dual[own] = _dual(q[own], k[own], own_forms, *(None if mask is None else mask[own] for mask in masks))

    sequences = cut(count, math.ceil(step / H))
    spread(fill, [((i, h), own) for i in sequences for h, own in zip(heads, of_those, strict=True)])
    return dual.reshape(*leading, n)


def _for_kernels(forms):
    """Constants of the slices and of the quadratic form, None for what is not there; None if there is anything else."""
    slices = [form for form in forms if isinstance(form, WeightedSlices)]
    quadratic = [form for form in forms if isinstance(form, QuadraticForm)]
    lifted = [lifted for form in quadratic for lifted in form.lifted]
    if len(slices) + len(quadratic) < len(forms) or len(slices) > 1 or len(lifted) > 1:
        return None
    of_slices = next(((form.theta, form.w) for form in slices), None)
    of_lifted = next(((form.R, form.F_k, form.F_q, form.Z) for form in lifted), (None,) * 4)
    return of_slices, next(((form.a, form.A, form.B, form.c, *of_lifted) for form in quadratic), None)


def _dual(q, k, forms, query_mask, key_mask):
    parts = [part for form in forms for part in form(q, k, query_mask, key_mask)]
    return keep(_sum(*parts) if len(parts) > 1 else parts[0], queries_with_a_key(query_mask, key_mask))


@one_pass
def _sum(xp, *parts):
    return functools.reduce(lambda x, y: x + y, parts)
