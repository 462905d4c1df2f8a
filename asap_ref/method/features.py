"""Features of queries and keys from which the query dual is predicted, family by family.

The paper's features are the L potentials phi of the queries on the slices (slices.py), and `Slices` is the family that
makes them. psi, those of the keys, are not needed: g follows from f by a half step. Our own families are in
extensions/; what each has to say of itself is in support/family.py.

A dual has a free constant, so each family centres its features over the valid tokens of each sequence (ours).

Shapes: q (..., n, d), k (..., m, d), features Phi (..., F, n). Arrays of a family are directions, as many as it has:
(d, L) shared by all heads, or (H, d, L), one set per head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asap_ref.method.slices import sliced_potentials, sliced_potentials_vjp
from asap_ref.support.arrays import array_namespace
from asap_ref.support.contracts import operator, vjp_of
from asap_ref.support.family import Family, check_families
from asap_ref.support.masks import keep, of_features, queries_with_a_key


@dataclass(frozen=True)
class Slices(Family, name="slices"):
    """The L slice potentials (paper): queries as samples on the line, along each direction (slices.py).

    Examples
    --------
    >>> import numpy as np
    >>> Slices(np.eye(4)), Slices(np.eye(4)).count
    (Slices(directions (4, 4)), 4)
    """

    directions: Any  # (d, L) or (H, d, L)

    @property
    def count(self):
        """L, the number of features."""
        return self.directions.shape[-1]

    def features(self, q, k, **masks):
        """(..., n, d), (..., m, d) -> (..., L, n)."""
        return sliced_potentials(q, k, self.directions, **masks)[0]

    def features_vjp(self, q, k, **masks):
        """Potentials phi, and their VJP; psi gets no gradient."""
        xp = array_namespace(q, k)
        (phi, psi), potentials_vjp = sliced_potentials_vjp(q, k, self.directions, **masks)

        def vjp(d_phi):
            dq, dk, d_directions = potentials_vjp((d_phi, xp.zeros_like(psi)))
            return dq, dk, {"directions": d_directions}

        return phi, vjp


@operator
def dual_features(q: "... n d", k: "... m d", families: "...", *, query_mask=None, key_mask=None):
    """Features from which the query dual is predicted: those of each family, one below the other.

    The cost is that of the families. Source: slices (paper); oracle, "Slices".

    Parameters
    ----------
    families : sequence of Family
        Their arrays are of the module, device and dtype of q, and fit it.

    Returns
    -------
    array (..., F, n)
        Each centred over its valid tokens, zero at masked queries.

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref import Cumulants, slice_directions
    >>> q, k = np.random.default_rng(0).standard_normal((2, 1, 5, 4))
    >>> dual_features(q, k, [Slices(slice_directions(4, 8)), Cumulants()]).shape
    (1, 11, 5)
    """
    check_families(families, q)
    features = [family.features(q, k, query_mask=query_mask, key_mask=key_mask) for family in families]
    return keep(_stacked(features), of_features(queries_with_a_key(query_mask, key_mask)))


@vjp_of(dual_features)
def dual_features_vjp(q, k, families, *, query_mask=None, key_mask=None):
    """Features and their VJP, ``vjp(d_features) -> (dq, dk, d_families)``, a dict for each family (ours).

    Examples
    --------
    >>> import numpy as np
    >>> features, vjp = dual_features_vjp(*np.ones((2, 1, 3, 2)), [Slices(np.eye(2))])
    >>> vjp(features)[2][0]["directions"].shape
    (2, 2)
    """
    check_families(families, q)
    made = [family.features_vjp(q, k, query_mask=query_mask, key_mask=key_mask) for family in families]
    alive = of_features(queries_with_a_key(query_mask, key_mask))

    def vjp(d_features):
        d_features = keep(d_features, alive)
        dq, dk, d_families, start = 0, 0, [], 0
        for family, (_, family_vjp) in zip(families, made, strict=True):
            stop = start + family.count
            dq_more, dk_more, d_family = family_vjp(d_features[..., start:stop, :])
            dq, dk, start = dq + dq_more, dk + dk_more, stop
            d_families.append(d_family)
        return dq, dk, tuple(d_families)

    return keep(_stacked([features for features, _ in made]), alive), vjp


def _stacked(features):
    """[(..., F_1, n), (..., F_2, n), ...] -> (..., F, n)."""
    return array_namespace(*features).concat(features, axis=-2) if len(features) > 1 else features[0]
