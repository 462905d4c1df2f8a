"""Features made fast, where calibration needs each of them and not their weighted sum (prediction.py).

A family registers its own with ``@fast_features.register``; one that does not makes them as it stands.

Shapes: q (..., n, d), k (..., m, d) -> features (..., F, n).
"""

from __future__ import annotations

import functools

from asap_ref.fast.slices import WeightedSlices
from asap_ref.method.features import Slices
from asap_ref.support.arrays import array_namespace
from asap_ref.support.family import Family
from asap_ref.support.masks import centred, of_features


@functools.singledispatch
def fast_features(family: Family, q, k, query_mask, key_mask):
    """`Family.features` up to rounding; at padding q and k are zero."""
    return family.features(q, k, query_mask=query_mask, key_mask=key_mask)


@fast_features.register
def _(family: Slices, q, k, query_mask, key_mask):
    xp, d = array_namespace(q, k), q.shape[-1]
    minus_half = xp.full((1, 1), -0.5, dtype=q.dtype, device=q.device)  # of the mean of two keys
    phi = WeightedSlices(family.directions * d**-0.25, minus_half).potentials(q, k, query_mask, key_mask)
    return centred(phi, of_features(query_mask))
