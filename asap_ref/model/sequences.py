"""Sequences of vectors, as a model takes them: points of clouds, steps of a time series, rows of a table.

Where all are equally long, an array (N, n, features) will do. Where they are not, `Sequences` holds them with a mask
that says which tokens are real; what padding holds does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from asap_ref.support.arrays import array_namespace, from_numpy
from asap_ref.support.masks import keep_tokens
from asap_ref.support.trees import EqualByValue


@dataclass(frozen=True, eq=False)
class Sequences(EqualByValue):
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
    def of(cls, sequences) -> Sequences:
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

    def __len__(self) -> int:
        return self.vectors.shape[0]

    def __getitem__(self, picked) -> Sequences:
        return Sequences(self.vectors[picked], None if self.mask is None else self.mask[picked])

    def first(self, tokens) -> Sequences:
        """Keep the first tokens of each sequence."""
        return Sequences(self.vectors[:, :tokens], None if self.mask is None else self.mask[:, :tokens])

    @property
    def shape(self):
        """(N, n, features)."""
        return tuple(self.vectors.shape)

    @classmethod
    def placed(cls, inputs, like):
        """Bring NumPy inputs, an array or `Sequences`, to the module, dtype and device of another array."""
        xp, device = array_namespace(like), like.device

        def brought(x, dtype):  # without a copy where none is needed
            bring = (
                partial(from_numpy, xp=xp)
                if isinstance(x, np.ndarray) > isinstance(like, np.ndarray)
                else xp.asarray
            )
            return bring(x, dtype=dtype, device=device)

        if not isinstance(inputs, cls):
            return brought(inputs, like.dtype)
        mask = None if inputs.mask is None else brought(inputs.mask, None)
        return cls(brought(inputs.vectors, like.dtype), mask)


def vectors_and_mask(inputs):
    """(vectors (B, n, features), mask (B, n) or None) of an array or `Sequences`; zero at padding.

    What padding holds must not reach a gradient: NaN times zero is NaN.
    """
    if not isinstance(inputs, Sequences):
        return inputs, None
    return keep_tokens(inputs.vectors, inputs.mask), inputs.mask
