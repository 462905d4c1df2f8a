"""Sequences of vectors, as a model takes them: points of clouds, steps of a time series, rows of a table.

Where all are equally long, an array (N, n, features) will do. Where they are not, `Sequences` holds them with a mask
that says which tokens are real; what padding holds does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sequences:
    """Padded sequences of vectors (N, n, features) and their mask (N, n), True at tokens; None masks nothing.

    Parameters
    ----------
    vectors : array (N, n, features)
    mask : boolean array (N, n), optional

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> few, many = np.ones((2, 3)), np.ones((5, 3))
    >>> sequences = Sequences.of([few, many])
    >>> sequences, sequences.mask.sum(axis=1), len(sequences[1:])
    (<Sequences: 2 of at most 5 tokens, 3 features>, array([2, 5]), 1)
    """

    vectors: Any
    mask: Any = None

    def __post_init__(self):
        shape, mask = tuple(self.vectors.shape), self.mask
        if len(shape) != 3 or (mask is not None and tuple(mask.shape) != shape[:2]):
            got = f"{shape} and {None if mask is None else tuple(mask.shape)}"
            raise ValueError(f"Sequences: expected vectors (N, n, features) and a mask (N, n) or None, got {got}")

    def __repr__(self):
        count, tokens, features = self.vectors.shape
        return f"<Sequences: {count} of at most {tokens} tokens, {features} features>"

    @classmethod
    def of(cls, sequences):
        """Pad a list of arrays, each (tokens, features), on the right with zeros: NumPy, in the dtype of the first."""
        sequences = [np.asarray(x) for x in sequences]
        shapes = sorted({x.shape[1:] for x in sequences})
        if len(shapes) != 1 or len(shapes[0]) != 1:
            raise ValueError(
                f"Sequences.of: expected arrays (tokens, features) of the same features, got {shapes}"
            )
        tokens = np.asarray([len(x) for x in sequences])
        mask = np.arange(max(tokens.max(), 1)) < tokens[:, None]
        vectors = np.zeros((*mask.shape, *shapes[0]), sequences[0].dtype)
        vectors[mask] = np.concatenate(sequences)
        return cls(vectors, mask)

    def __len__(self):
        return len(self.vectors)

    def __getitem__(self, picked):
        return Sequences(self.vectors[picked], None if self.mask is None else self.mask[picked])

    def first(self, tokens):
        """Keep the first tokens of each sequence."""
        return Sequences(self.vectors[:, :tokens], None if self.mask is None else self.mask[:, :tokens])

    @property
    def shape(self):
        """(N, n, features)."""
        return tuple(self.vectors.shape)
