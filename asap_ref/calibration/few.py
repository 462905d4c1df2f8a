"""A few sequences of a batch, for what does not need them all."""

from __future__ import annotations

from asap_ref.support.arrays import array_namespace, is_half


def few_sequences(q, k, query_mask, key_mask, *, count):
    """Take the first sequences of a batch (..., H, n, d): (count, H, n, d), and masks of as many, or None.

    Half precision comes in float32, in which it is computed everywhere.

    Examples
    --------
    >>> import numpy as np
    >>> q = np.ones((5, 3, 2, 4, 8))  # 5 times 3 sequences of 2 heads
    >>> [None if x is None else x.shape for x in few_sequences(q, q, None, np.ones(4, bool), count=2)]
    [(2, 2, 4, 8), (2, 2, 4, 8), None, (2, 2, 4)]
    """
    xp = array_namespace(q, k)

    def first(x, of_a_sequence):
        sequences = xp.reshape(x, (-1, *of_a_sequence))
        return sequences[: min(count, sequences.shape[0]), ...]  # the standard knows no slice beyond the end

    tokens = [first(x, x.shape[-3:]) for x in (q, k)]
    tokens = [xp.astype(x, xp.float32) if is_half(x.dtype) else x for x in tokens]
    masks = [
        None if mask is None else first(xp.broadcast_to(mask, x.shape[:-1]), x.shape[-3:-1])
        for x, mask in ((q, query_mask), (k, key_mask))
    ]
    return *tokens, *masks
