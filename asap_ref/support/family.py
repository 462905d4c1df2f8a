"""What a family of features is to the rest of the package, and the table of all that there are.

A family is one object: it has its arrays as fields, and it knows how many features it makes, their values and their
gradient. Whatever saves, places, cuts or fits families asks this, and knows none by name.
"""

from __future__ import annotations

from dataclasses import fields

from asap_ref.support.printing import shapes_of_fields
from asap_ref.support.settings import check_directions
from asap_ref.support.trees import EqualByValue

FAMILIES = {}  # its name in files, and as a setting of `fit_amortizer` -> the class of a family


class Family:
    """What a family of features has to say of itself; subclasses are frozen dataclasses whose fields are arrays.

    Examples
    --------
    How to make one is in extensions/__init__.py. It is asked for by name: ``fit_amortizer(batches, cumulants=True)``.

    >>> from asap_ref import Slices
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
        """Features and ``vjp(d_features) -> (dq, dk, {array: its gradient})``, without arrays that are settings."""
        raise NotImplementedError

    def check(self, q):
        """Raise ValueError unless the arrays fit queries (..., H, n, d)."""
        for field in fields(self):
            check_directions(field.name, getattr(self, field.name), q)


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


def check_weights(q, families, weights):
    """Raise unless the families fit q (..., H, n, d), and the weights are (H, F)."""
    check_families(families, q)
    expected = (q.shape[-3], sum(family.count for family in families))
    if tuple(weights.shape) != expected:
        raise ValueError(f"weights has shape {tuple(weights.shape)}, expected (H, F) = {expected}")
