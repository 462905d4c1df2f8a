"""What goes into files of dataclasses and comes back: their arrays, those of their parts, and settings beside them.

A *state* is (nested dict of arrays, JSON-ready settings). Files of it are written by files.py; a model holds the
states of its layers in its own.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Self

import numpy as np

from asap_ref.support import files


class SavedArrays:
    """A dataclass of arrays and numbers, which are saved as arrays all of them.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Sums(SavedArrays):
    ...     total: np.ndarray
    ...     count: int
    >>> Sums.from_state(Sums(np.ones(2), 3).state())
    Sums(total=array([1., 1.]), count=3)
    """

    def state(self):
        """Return a dict of arrays, from which `from_state` rebuilds the object."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_state(cls, arrays):
        """Rebuild an object from its `state`."""
        return cls(**{name: x if x.ndim else x.item() for name, x in arrays.items()})


class SavedWeights:
    """A dataclass of weights (H, F) for families of features, with what was measured and set when it was made.

    A subclass says in its ``class`` line what is saved: ``kind`` of file, JSON-ready ``settings``, arrays ``measured``
    that may be missing, ``families`` {name: dataclass of arrays}, and the class of its ``statistics`` (or None of it).
    """

    def __init_subclass__(cls, *, kind, settings, measured, families, statistics):
        cls._kind, cls._settings, cls._measured = kind, settings, measured
        cls._known, cls._statistics = families, statistics

    def save(self, path) -> None:
        """Write it as .npz, atomically."""
        files.save(path, self._kind, *self.state())

    @classmethod
    def load(cls, path) -> Self:
        """Read what `save` wrote."""
        return files.load(path, cls._kind, cls.from_state)

    def state(self):
        """(nested dict of arrays, JSON-ready settings), from which `from_state` rebuilds the object."""
        arrays = {"weights": self.weights} | {name: getattr(self, name) for name in self._measured}
        arrays = {name: x for name, x in arrays.items() if x is not None}
        for i, family in enumerate(self.families):
            arrays[f"family{i}"] = {each.name: getattr(family, each.name) for each in fields(family)}
        if self.statistics is not None:
            arrays["statistics"] = self.statistics.state()
        names = [family.name for family in self.families]
        return arrays, {"families": names} | {name: getattr(self, name) for name in self._settings}

    @classmethod
    def from_state(cls, arrays, settings):
        """Rebuild an object from its `state`, or from what release 0.1 wrote."""
        if "families" not in settings:
            arrays, settings = _from_0_1(arrays, settings)
        arrays, settings = dict(arrays), dict(settings)
        names, known = settings.pop("families"), cls._known
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"families {unknown} are not among those here, {list(known)}; import their module")
        families = tuple(known[name](**arrays.pop(f"family{i}", {})) for i, name in enumerate(names))
        if "statistics" in arrays:
            arrays["statistics"] = cls._statistics.from_state(arrays["statistics"])
        if settings.keys() != set(cls._settings):
            raise ValueError(f"settings are {sorted(settings)}, expected {sorted(cls._settings)}")
        return cls(families, **arrays, **settings)


def _from_0_1(arrays, settings):
    """What release 0.1 wrote, family by family: it knew four by name, and a hidden layer that is no more."""
    if "hidden" in arrays:
        raise ValueError("a hidden layer was left out after release 0.1, since it did not pay; calibrate anew")
    arrays, settings = dict(arrays), dict(settings)
    arrays.pop("slice_errors", None)  # of numbers of slices that it tried
    if settings["objective"] != "regression":  # of which it kept the sums all the same
        arrays.pop("statistics", None)
    basis = {"basis": arrays.pop("basis")} if "basis" in arrays else None
    families = [("slices", {"directions": arrays.pop("directions")})]
    families += [("cumulants", {})] if settings.pop("cumulants") else []
    families += [("quadratic", basis)] if basis else []
    families += [("moments", basis)] if settings.pop("moments") else []
    arrays |= {f"family{i}": family for i, (_, family) in enumerate(families)}
    return arrays, settings | {"families": [name for name, _ in families]}
