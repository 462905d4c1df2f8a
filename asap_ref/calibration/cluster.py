"""The same sums on a cluster: a source (sources.py) whose batches are made and used on the workers of Dask.

Statistics and gradients are sums over batches, which is what ``dask.bag`` folds: each worker makes a batch, forms its
part of the sum and lets go of the batch, and the parts are added as a tree. The tree depends on the batches alone,
and a batch is laid out in memory as a journey leaves it, so that to the last bit the result does not depend on how
many workers there are, on which did what, or on some that were lost: Dask makes their parts again.
Dask is imported only here, and only once a client is given.
"""

from __future__ import annotations

import itertools
import numbers
import operator
import os
from functools import partial

import numpy as np

from asap_ref.calibration.sources import Chunked, Rows, added_up, in_turn, peek, resolved
from asap_ref.support.held import Held

GROUP = 4  # batches in a tree when they come from the caller: a tree for each thread is on its way at a time


def on_cluster(batches, client, *, progress=False):
    """Make a source of batches that are gone through on the workers of a client.

    Parameters
    ----------
    batches
        As in `asap_ref.sources.resolved`. Paths and arrays on disk are read by the workers, which must see them;
        dask arrays are computed there; batches in the caller's memory are sent, a group at a time.
    client : dask.distributed.Client
    progress : bool
        Whether to show Dask's own progress bar.

    Raises
    ------
    ModuleNotFoundError
        If dask.distributed is not installed.
    TypeError
        If client is not a Client, or is an asynchronous one.

    Examples
    --------
    >>> from dask.distributed import Client  # doctest: +SKIP
    >>> with Client() as client:  # doctest: +SKIP
    ...     on_cluster([1, 2, 3], client).total(abs)
    6
    """
    try:
        from dask.distributed import Client
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "client: dask.distributed is not installed; pip install 'asap-ref[distributed]'"
        ) from error
    if not isinstance(client, Client):
        raise TypeError(f"client: expected a dask.distributed.Client, got {type(client).__name__}")
    if client.asynchronous:
        raise TypeError("client: expected a Client that waits for results, got one with asynchronous=True")
    return OnCluster(*resolved(batches), client, progress=progress)


class OnCluster:
    """Batches on the workers of a Dask cluster; see `on_cluster`."""

    def __init__(self, parts, make, client, *, progress):
        self._parts, self._make = parts, partial(in_turn, (make, _contiguous))
        self._client, self._progress = client, progress

    def first(self):
        """Return the first batch, made by a worker, or None."""
        part, self._parts = peek(self._parts)
        if part is None:
            return None
        bag = next(self._bags(self._parts if isinstance(self._parts, Chunked) else [part]))
        return self._result(bag.to_delayed()[0])[0]

    def total(self, function):
        """Add up ``function(batch)`` over all batches, as trees, whose sums are added in order."""
        function = _sent_once(function)
        # in twos: a worker holds few partial sums at a time
        trees = (
            bag.map(_call, function=function).fold(operator.add, split_every=2) for bag in self._bags(self._parts)
        )
        return added_up(self._results(trees))

    def _results(self, trees):
        """Yield the sums of trees in their order; some are worked on while the next are sent."""
        before = []
        while some := list(itertools.islice(trees, self._threads())):
            started = self._start(some)
            yield from (future.result() for future in before)
            before = started
        yield from (future.result() for future in before)

    def _bags(self, parts):
        """Yield bags of batches, a partition a batch: one bag if all are still on disk, else groups."""
        from dask import bag, delayed

        make = _sent_once(self._make)
        if isinstance(parts, Chunked) and hasattr(parts.arrays[0], "dask"):
            rows = parts.arrays[0].chunks[0]
            blocks = [
                x.rechunk({0: rows, **dict.fromkeys(range(1, x.ndim), -1)}).to_delayed().ravel()
                for x in parts.arrays
            ]
            batches = [delayed(_one_batch)(parts.alone, *arrays) for arrays in zip(*blocks, strict=True)]
            yield bag.from_delayed(batches).map(_call, function=make)
            return
        iterator = iter(parts)
        while group := list(itertools.islice(iterator, GROUP)):
            if all(map(_is_light, group)):
                group += iterator
            yield bag.from_sequence(group, partition_size=1).map(_call, function=make)

    def _threads(self):
        return max(sum(self._client.nthreads().values()), 1)

    def _start(self, tasks):
        with _of_any_size:
            futures = self._client.compute(tasks)
        if self._progress:
            from dask.distributed import progress

            progress(futures, notebook=False)
        return futures

    def _result(self, task):
        with _of_any_size:
            return self._client.compute(task).result()


def _sent_once(function):
    """Wrap a function that may be large (it may hold a model): it is sent once, not with each batch."""
    from dask import delayed

    return delayed(function, traverse=False)


def _call(batch, function):
    return function(batch)


def _one_batch(alone, *arrays):
    return [arrays[0] if alone else arrays]


def _contiguous(batch):
    """Lay arrays out in C order, which a journey keeps: sums over another layout have other last bits."""
    if isinstance(batch, tuple | list):
        return tuple(map(_contiguous, batch))
    return np.asarray(batch, order="C") if isinstance(batch, np.ndarray) else batch


def _is_light(part):
    return isinstance(part, Rows | str | os.PathLike | numbers.Number)


def _any_size():
    import dask

    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"})


# Models and batches travel with the tasks, of which Dask warns. They do so on purpose: what is scattered is gone with
# its worker, what is in the graph can be made again. Dask's settings are those of the process.
_of_any_size = Held(_any_size)
