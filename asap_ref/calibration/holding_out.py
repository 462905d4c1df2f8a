"""Which examples of a batch are held out: every tenth, or the last of fewer."""

from __future__ import annotations

import numpy as np

from asap_ref.support.arrays import array_namespace, count_of, from_numpy, is_array

EVERY = 10


def held_out(count):
    """Mark the examples held out of so many: NumPy booleans (count,); none of a single one.

    Examples
    --------
    >>> np.flatnonzero(held_out(25)).tolist(), np.flatnonzero(held_out(4)).tolist(), held_out(1).tolist()
    ([9, 19], [3], [False])
    """
    return (np.arange(count) % EVERY == min(count, EVERY) - 1) & (count > 1)


def split(side, batch):
    """Return the examples of a batch that are "held out", or those left to "fit".

    Examples
    --------
    >>> split("held out", np.arange(12)).tolist(), split("fit", np.arange(3)).tolist()
    ([9], [0, 1])
    """
    kept_aside = held_out(count_of(batch))
    chosen = np.flatnonzero(kept_aside if side == "held out" else ~kept_aside)
    if is_array(batch) and not isinstance(batch, np.ndarray):
        xp = array_namespace(batch)
        return xp.take(batch, from_numpy(chosen, xp, device=batch.device), axis=0)
    return batch[chosen]
