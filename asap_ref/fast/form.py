"""The fast form of a family of features: how it is weighed without its features being formed one by one.

A family registers its own with ``@fast_form.register``; one that does not is weighed as it stands.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from asap_ref.support.arrays import transpose
from asap_ref.support.family import Family


@functools.singledispatch
def fast_form(family, weights, d):
    """Say how a family is weighed fast, by weights (H, F) and for tokens of dimension d, both NumPy in float64.

    The answer is a dataclass of arrays, one a head where they have three axes, that is called as
    ``form(q, k, query_mask, key_mask)``; at padding q and k are zero. It gives a tuple of arrays (..., n), whose sum is
    the family's part of the dual, up to a constant. Its ``width`` is how many numbers it holds at once for a token.
    """
    return Weighted(family, weights[..., None])


@dataclass(frozen=True)
class Weighted:
    """The features of a family as they stand, times their weights."""

    family: Family
    weights: Any  # (H, F, 1)

    @property
    def width(self):
        """F."""
        return self.family.count

    def __call__(self, q, k, query_mask, key_mask):
        """(..., n, d), (..., m, d) -> one of (..., n)."""
        features = self.family.features(q, k, query_mask=query_mask, key_mask=key_mask)
        return ((transpose(self.weights) @ features)[..., 0, :],)
