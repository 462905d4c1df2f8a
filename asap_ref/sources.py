"""Where calibration batches come from, and how a sum over them is formed.

Calibration asks two things of its data: a first batch, and the sum over all batches of a function of one. That is
all a distributed engine needs to know as well.
"""

from __future__ import annotations

import itertools


class InProcess:
    """Batches of an iterable, one in memory at a time; see `in_process`."""

    def __init__(self, batches):
        self._batches = batches

    def first(self):
        """Return the first batch, or None; an iterator still gives it again in the next pass."""
        iterator = iter(self._batches)
        batch = next(iterator, None)
        if iterator is self._batches and batch is not None:
            self._batches = itertools.chain([batch], iterator)
        return batch

    def total(self, function):
        """Add up ``function(batch)`` over all batches."""
        total = None
        for batch in self._batches:
            part = function(batch)
            total = part if total is None else total + part
        return total


def in_process(batches, *, restarts):
    """Make a source of an iterable of batches.

    Parameters
    ----------
    batches : iterable
    restarts : bool
        Whether the batches will be gone through several times.

    Raises
    ------
    TypeError
        If they are needed several times but can be had only once.

    Examples
    --------
    >>> source = in_process(iter([1, 2, 3]), restarts=False)
    >>> source.first(), source.total(lambda x: 10 * x)
    (1, 60)
    """
    if restarts and iter(batches) is batches:
        raise TypeError(
            "batches can be gone through only once, but this objective needs them at every step; give a list, or an "
            "object whose __iter__ starts again"
        )
    return InProcess(batches)
