"""What is done with the sums of a regression beside solving it: they are added, scaled, picked from, saved, printed."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np

from asap_ref.support.printing import in_short
from asap_ref.support.trees import EqualByValue


class Sums(EqualByValue):
    """A dataclass of sums over tokens: gram (H, F, F), cross (H, F), square (H,) and count, which is one for all heads.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True, eq=False, repr=False)
    ... class Own(Sums):
    ...     gram: np.ndarray
    ...     cross: np.ndarray
    ...     square: np.ndarray
    ...     count: int
    >>> own = Own(np.ones((2, 3, 3)), np.ones((2, 3)), np.ones(2), 5)
    >>> own + own.scaled(0.5), own.of_heads([1]), own == Own.from_state(own.state())
    (<Own: heads 2, features 3, tokens 7.5>, <Own: heads 1, features 3, tokens 5>, True)
    """

    def __repr__(self):
        H, F = self.cross.shape
        return in_short(self, f"heads {H}", f"features {F}", f"tokens {self.count:g}")

    def __add__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        if self.gram.shape != other.gram.shape:
            raise ValueError(
                f"statistics of {self.gram.shape[:2]} and of {other.gram.shape[:2]} heads and features cannot be "
                "merged; they must come from the same heads, slices and feature families"
            )
        return type(self)(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def scaled(self, factor):
        """Sums in which each token counts ``factor`` times."""
        return type(self)(*(factor * getattr(self, field.name) for field in fields(self)))

    def of_heads(self, heads):
        """Sums of some of the heads only, by index."""
        heads = list(heads)
        return replace(self, gram=self.gram[heads], cross=self.cross[heads], square=self.square[heads])

    def of_features(self, picked):
        """Sums of some of the features only, (H, F') indices: one choice a head."""
        heads = np.arange(len(picked))[:, None]
        gram = self.gram[heads[:, :, None], picked[:, :, None], picked[:, None, :]]
        return replace(self, gram=gram, cross=self.cross[heads, picked])

    def without(self, marked):
        """Sums in which the features that are marked, (H, F) booleans, are zero."""
        kept = np.where(marked, 0.0, 1.0)
        gram = self.gram * kept[:, :, None] * kept[:, None, :]
        return replace(self, gram=gram, cross=self.cross * kept)

    def of_slices(self, picked, candidates):
        """Sums of some of the slices, (H, L) indices into the first ``candidates`` features, and of all others."""
        others = np.arange(candidates, self.gram.shape[-1])
        return self.of_features(np.hstack([picked, np.tile(others, (len(picked), 1))]))

    def state(self):
        """Return a dict of arrays, from which `from_state` rebuilds the object."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_state(cls, arrays):
        """Rebuild an object from its `state`."""
        return cls(**{name: x if x.ndim else x.item() for name, x in arrays.items()})
