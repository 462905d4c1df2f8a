"""Features of queries and keys from which the query dual is predicted, family by family.

A *family* of features is one object: it has its arrays as fields, and it knows how many features it makes, their
values and their gradient. The paper's family, `Slices`, stands here: the L slice potentials. Ours are in extensions/,
each a class in a file, which nothing else knows by name.

A dual has a free constant, so every feature is centred over the valid tokens of its sequence; padding has features
zero.

Shapes: q (..., n, d), k (..., m, d), features Phi (..., F, n). Arrays of a family are directions: (d, r) shared by all
heads, or (H, d, r), one set a head.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from asap_ref.method.slices import sliced_potentials, sliced_potentials_vjp
from asap_ref.support.arrays import array_namespace
from asap_ref.support.contracts import operator, vjp_of
from asap_ref.support.masks import keep, of_features, queries_with_a_key
from asap_ref.support.printing import shapes_of_fields
from asap_ref.support.settings import check_directions
from asap_ref.support.trees import EqualByValue

FAMILIES = {}  # its name in files, and as a setting of `fit_amortizer` -> the class of a family


class Family:
    """What a family of features has to say of itself; subclasses are frozen dataclasses whose fields are arrays.

    Examples
    --------
    How to make one is in extensions/__init__.py. It is asked for by name: ``fit_amortizer(batches, cumulants=True)``.

    >>> issubclass(Slices, Family), FAMILIES["slices"] is Slices
    (True, True)
    """

    default = False  # the setting of `fit_amortizer` when none is given; what is false leaves the family out

    def __init_subclass__(cls, *, name):
        cls.name = name
        cls.__repr__ = shapes_of_fields  # or a dataclass would print its arrays
        cls.__eq__, cls.__hash__ = EqualByValue.__eq__, EqualByValue.__hash__  # or ask arrays for theirs
        FAMILIES[name] = cls

    @classmethod
    def fitted(cls, setting, axes):
        """Make the family that a setting of `fit_amortizer` asks for.

        ``axes(r)`` gives r leading principal directions of the calibration data, (d, r) or (H, d, r).
        """
        return cls()

    @property
    def count(self):
        """F, how many features there are; it must not depend on the tokens."""
        raise NotImplementedError

    def features(self, q, k, *, query_mask=None, key_mask=None):
        """Make the features: (..., n, d), (..., m, d) -> (..., F, n), centred, zero at padding."""
        return self.features_vjp(q, k, query_mask=query_mask, key_mask=key_mask)[0]

    def features_vjp(self, q, k, *, query_mask=None, key_mask=None):
        """Features and ``vjp(d_features) -> (d_q, d_k, {array: its gradient})``, without arrays that are settings."""
        raise NotImplementedError

    def check(self, q):
        """Raise ValueError unless the arrays fit queries (..., H, n, d)."""
        for field in fields(self):
            check_directions(field.name, getattr(self, field.name), q)


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
        """L."""
        return self.directions.shape[-1]

    def features(self, q, k, **masks):
        """(..., n, d), (..., m, d) -> (..., L, n)."""
        return sliced_potentials(q, k, self.directions, **masks)[0]

    def features_vjp(self, q, k, **masks):
        """Potentials phi, and their VJP; psi gets no gradient."""
        xp = array_namespace(q, k)
        (phi, psi), potentials_vjp = sliced_potentials_vjp(q, k, self.directions, **masks)

        def vjp(d_phi):
            d_q, d_k, d_directions = potentials_vjp((d_phi, xp.zeros_like(psi)))
            return d_q, d_k, {"directions": d_directions}

        return phi, vjp


@operator
def dual_features(q: "... n d", k: "... m d", families: "...", *, query_mask=None, key_mask=None):
    """Features from which the query dual is predicted: those of each family, one below the other.

    The cost is that of the families. Source: slices: paper and asap_ref/oracle/README.md, "Slices".

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
    features = array_namespace(q).concat(features, axis=-2) if len(features) > 1 else features[0]
    return keep(features, of_features(queries_with_a_key(query_mask, key_mask)))


@vjp_of(dual_features)
def dual_features_vjp(q, k, families, *, query_mask=None, key_mask=None):
    """Features and their VJP, ``vjp(d_features) -> (d_q, d_k, d_families)``, a dict for each family. Derived.

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
        d_q, d_k, d_families, start = 0, 0, [], 0
        for family, (_, family_vjp) in zip(families, made, strict=True):
            stop = start + family.count
            d_q_more, d_k_more, d_family = family_vjp(d_features[..., start:stop, :])
            d_q, d_k, start = d_q + d_q_more, d_k + d_k_more, stop
            d_families.append(d_family)
        return d_q, d_k, tuple(d_families)

    features = [features for features, _ in made]
    features = array_namespace(q).concat(features, axis=-2) if len(made) > 1 else features[0]
    return keep(features, alive), vjp


def check_families(families, q):
    """Raise unless these are families of features for queries (..., H, n, d), at least one."""
    if not isinstance(families, list | tuple) or not families:
        raise TypeError(f"families must be a list of at least one family of features, got {families!r:.60}")
    for family in families:
        if not isinstance(family, Family):
            raise TypeError(
                f"families must hold families of features, such as Slices(directions), got {type(family).__name__}"
            )
        family.check(q)
