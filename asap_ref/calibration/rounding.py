"""Which features of a batch are nothing but rounding: they are left out, or weights would make something of them.

Normalised queries have |q|² = 1, and keys less their mean the mean zero. Once such a feature is centred, its last
digits are left. Weights are relative to a feature's own size, so it would get one of 1e12; and the digits are others
where the feature is formed another way: in the fast form, in float32. So q and k are changed by as much as float32
rounds: a feature that then moves by a tenth of what it varies tells nothing. (derived)

Slices are not asked: they vary where queries do.

Shapes: q (..., H, n, d), k (..., H, m, d) -> (H, F).
"""

from __future__ import annotations

import numpy as np

from asap_ref.calibration.few import few_sequences
from asap_ref.fast.features import fast_features
from asap_ref.method.features import Slices
from asap_ref.support.arrays import to_numpy
from asap_ref.support.contracts import inside
from asap_ref.support.masks import keep_tokens
from asap_ref.support.trees import place_like

ENOUGH = 1024  # queries that are looked at, of a batch: in whole sequences
TENTH = 0.1


def is_rounding(families, q, k, query_mask=None, key_mask=None):
    """Mark the features that a rounding of q and k moves by a tenth of their size: NumPy booleans (H, F).

    Examples
    --------
    >>> from asap_ref import Cumulants
    >>> q, k = np.random.default_rng(0).standard_normal((2, 3, 1, 5, 4))
    >>> is_rounding([Cumulants()], q / np.linalg.norm(q, axis=-1, keepdims=True), k)  # |q|² is the second of three
    array([[False,  True, False]])
    """
    some = few_sequences(q, k, query_mask, key_mask, count=max(ENOUGH // q.shape[-2], 1))
    q, k, *masks = (None if x is None else to_numpy(x) for x in some)
    q, k = (keep_tokens(x, mask).astype(np.float64) for x, mask in zip((q, k), masks, strict=True))
    rng, unit = np.random.default_rng(0), np.finfo(np.float32).eps
    rounded = (x * (1 + unit * rng.uniform(-1, 1, x.shape)) for x in (q, k))
    return inside(_moves, place_like(q, families), (q, k), tuple(rounded), masks)


def _moves(families, given, rounded, masks):
    marks = []
    for family in families:
        if isinstance(family, Slices):
            marks.append(np.zeros((given[0].shape[1], family.count), bool))
            continue
        # (sequences, H, F, n)
        one, other = (fast_features(family, *tokens, *masks) for tokens in (given, rounded))
        move, size = (np.sum(x * x, axis=(0, -1)) for x in (other - one, one))
        marks.append(move > TENTH**2 * size)
    return np.concatenate(marks, axis=-1)
