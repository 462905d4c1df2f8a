"""Batches of inputs, on the host: in which order they come, and little of them padding.

A batch is as long as its longest sequence, so an epoch is cut into batches of like length. Inputs are images, token
ids or sequences of vectors; what cannot be padded passes through unchanged.
"""

from __future__ import annotations

import numpy as np

from asap_ref.model.sequences import Sequences
from asap_ref.model.text import PADDING

POOL = 16  # batches whose sequences are sorted by length together: more pad less, fewer mix better


def lengths(inputs):
    """Tokens of each sequence up to the last one that is not padding, (N,); None where nothing can be padded."""
    valid = padding_mask(inputs)
    return None if valid is None else np.max(np.where(valid, np.arange(1, valid.shape[1] + 1), 0), axis=1)


def padding_mask(inputs):
    """True at tokens, (N, n), where inputs may hold padding: token ids, or sequences with a mask."""
    if isinstance(inputs, Sequences):
        return inputs.mask
    return inputs != PADDING if np.issubdtype(inputs.dtype, np.integer) else None


def trimmed(inputs):
    """Cut the columns that are padding in every sequence; one is always kept.

    Examples
    --------
    >>> trimmed(np.asarray([[4, 2, 0, 0], [3, 0, 0, 0]]))
    array([[4, 2],
           [3, 0]])
    """
    length = lengths(inputs)
    if length is None:
        return inputs
    longest = max(1, length.max())
    return inputs.first(longest) if isinstance(inputs, Sequences) else inputs[:, :longest]


def batches(inputs, batch_size):
    """Indices of batches that go through all inputs once; padded ones from short to long."""
    length = lengths(inputs)
    order = np.arange(len(inputs)) if length is None else np.argsort(length, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def shuffled_batches(inputs, batch_size, rng):
    """Indices of the batches of an epoch, in random order.

    What is padded is shuffled, sorted by length among the members of a pool of batches, cut, and the batches shuffled.

    Examples
    --------
    >>> ids = np.asarray([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    >>> [sorted(batch.tolist()) for batch in shuffled_batches(ids, 2, np.random.default_rng(0))]
    [[1, 4], [0, 3], [2, 5]]
    """
    order, length, found = rng.permutation(len(inputs)), lengths(inputs), []
    if length is None:
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    for i in range(0, len(order), POOL * batch_size):
        pool = order[i : i + POOL * batch_size]
        pool = pool[np.argsort(length[pool], kind="stable")]
        found += [pool[j : j + batch_size] for j in range(0, len(pool), batch_size)]
    return [found[i] for i in rng.permutation(len(found))]
