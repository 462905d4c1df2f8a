"""Formulas written otherwise, as one gets them wrong: what comes out of them where no wrong argument gives it.

Plain NumPy, for the cases without masks, of operators with one output; None where the mistake cannot be made.
"""

from __future__ import annotations

from functools import partial

import numpy as np


def soft_sort_over_ranks(q, k, v, directions=None, *, temperature, inverse_temperature, hard=False):
    """Sliced-transport attention whose soft permutations sum to one over ranks, not over tokens."""
    (*_, n, d), m = q.shape, k.shape[-2]
    if hard:
        return None

    def permutations(tokens):  # (..., n, d) -> (..., L, n, n), ranks along the rows
        x = (tokens if directions is None else tokens @ directions).swapaxes(-1, -2) / np.sqrt(d)
        score = -((np.sort(x, axis=-1)[..., :, None] - x[..., None, :]) ** 2) / temperature
        e = np.exp(score - score.max(-2, keepdims=True))
        return e / e.sum(-2, keepdims=True)

    r, s = np.arange(n)[:, None], np.arange(m) * n / m  # rank r of the queries, and where key rank s begins
    W = np.maximum(np.minimum(r + 1, s + n / m) - np.maximum(r, s), 0)
    G = permutations(q).swapaxes(-1, -2) @ W @ permutations(k)  # (..., L, n, m)
    D = np.sqrt(((q[..., :, None, :] - k[..., None, :, :]) ** 2).sum(-1) / d)
    w = np.exp(-inverse_temperature * (D[..., None, :, :] * G).sum((-2, -1)))
    w = w / w.sum(-1, keepdims=True)
    return (w[..., None, None] * G).sum(-3) @ v


FORMULAS = {  # operator: (flag, what was done, what then comes out)
    "sliced_attention": (
        ("soft_sort", "the soft permutations are normalised over ranks, not over tokens", soft_sort_over_ranks),
    ),
}


def written_otherwise(case):
    """(flag, sentence, function without arguments that gives {output: array}) of every such mistake of the operator."""
    masked = any(name.endswith("mask") for name in case.inputs)
    for flag, what, formula in () if masked else FORMULAS.get(case.operator, ()):
        yield flag, f"it is what comes out if {what}", partial(_outputs, case, formula)


def _outputs(case, formula):
    (name,) = case.outputs
    return {name: formula(**case.inputs, **case.arguments)}
