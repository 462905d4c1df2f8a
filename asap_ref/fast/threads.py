"""Independent problems (a batch and head each) spread over threads, a cache-sized chunk at a time, on NumPy.

NumPy's loops and BLAS let go of the interpreter while they run, so threads help. BLAS itself is held to one
thread meanwhile: small products gain nothing from more, and ours are already in parallel.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from asap_ref.support.contracts import inside
from asap_ref.support.held import Held

CHUNK = 2**18  # entries of scores in a chunk: 1 MiB in float32, so that it stays in the cache


def worker_count():
    """Threads to use: ASAP_REF_THREADS, or the processors this process may run on."""
    given = os.environ.get("ASAP_REF_THREADS")
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not given.isdigit() or int(given) < 1:
        raise ValueError(f"ASAP_REF_THREADS must be an integer of at least 1, got {given!r}")
    return int(given)


_thread = threading.local()


def _engage(yes=True):
    """Say of this thread that it is one of a pool, or is waiting for one."""
    _thread.engaged = yes


def _begin_in_pool():
    _engage()
    _thread.of_pool = True


def _is_of_pool():
    """Say whether this thread is one: what it calls takes no others, and is not cut by how many there are."""
    return getattr(_thread, "of_pool", False)


@functools.cache
def _pool(workers):
    return ThreadPoolExecutor(workers, thread_name_prefix="asap_ref", initializer=_begin_in_pool)


if hasattr(os, "register_at_fork"):  # the threads of a pool do not come along into a forked child
    os.register_at_fork(after_in_child=_pool.cache_clear)


@functools.cache
def _blas():
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")  # to find it takes a while


_blas_on_one_thread = Held(lambda: _blas().limit(limits=1))


def blas_on_one_thread():
    """Hold BLAS to one thread, for what is small: a team of them that waits for each other can cost seconds."""
    return _blas_on_one_thread


def within_a_chunk(q, k):
    """Say whether all scores of the problems fit in a chunk: there is then nothing to gain from threads or tiles."""
    return math.prod(q.shape[:-1]) * k.shape[-2] <= CHUNK


def chunks(count, size):
    """Slices of ``count`` problems with ``size`` entries each, evenly over the workers."""
    return cut(count, even_step(count, size, CHUNK)) or [slice(0, 0)]


def even_step(count, size, most, least=math.inf):
    """Problems in a piece of at most about ``most`` entries.

    Where there are several pieces, or each worker would have ``least`` entries, they are as many for each worker.
    """
    pieces = max(math.ceil(count * size / most), 1)
    if not _is_of_pool():  # within a piece a thread costs more than it saves
        even = math.ceil(pieces / worker_count()) * worker_count()
        if pieces > 1 or count * size >= even * least:
            pieces = even
    return max(math.ceil(count / pieces), 1)


def cut(count, step):
    """Slices of 0 to ``count``, ``step`` long but for the last."""
    return [slice(i, min(i + step, count)) for i in range(0, count, step)]


def spread(function, pieces):
    """Call the function on each piece, on threads if there are several, and return the results in order."""
    own = functools.partial(inside, function)
    # a thread of the pool that waited for others of it could wait for ever, and so could a handler of signals that has
    # come in where the pool is locked
    if len(pieces) == 1 or worker_count() == 1 or getattr(_thread, "engaged", False):
        return list(map(own, pieces))
    with _blas_on_one_thread:
        _engage()
        try:
            return list(_started(own, pieces))
        finally:
            _engage(False)


def _started(own, pieces):
    try:
        return _pool(worker_count()).map(own, pieces)
    except RuntimeError:  # no thread is started any more, as when the interpreter ends
        return map(own, pieces)


def over_problems(function, arrays, masks):
    """Apply ``function(*arrays, *masks)`` chunk by chunk, the leading axes flattened to one; on NumPy, else at once.

    Arrays are (*leading, tokens, ...), masks (..., tokens) or None. Returns (*leading, ...).
    """
    if not isinstance(arrays[0], np.ndarray):
        return function(*arrays, *masks)
    leading, _, pieces, part = _cut(arrays, masks)
    return _join(spread(lambda piece: function(*part(piece)), pieces), leading)


def over_problems_vjp(function_vjp, arrays, masks):
    """Like `over_problems`, for a function that returns (value, vjp)."""
    if not isinstance(arrays[0], np.ndarray):
        return function_vjp(*arrays, *masks)
    leading, count, pieces, part = _cut(arrays, masks)
    results = spread(lambda piece: function_vjp(*part(piece)), pieces)

    def vjp(cotangent):
        rows = cotangent.reshape(count, *cotangent.shape[len(leading) :])
        jobs = [(backward, rows[piece]) for piece, (_, backward) in zip(pieces, results, strict=True)]
        gradients = spread(lambda job: job[0](job[1]), jobs)
        return tuple(_join(parts, leading) for parts in zip(*gradients, strict=True))

    return _join([value for value, _ in results], leading), vjp


def _cut(arrays, masks):
    leading = arrays[0].shape[:-2]
    count = math.prod(leading)
    flat = [x.reshape(count, *x.shape[len(leading) :]) for x in arrays]
    flat += [flat_mask(mask, leading, count) for mask in masks]
    pieces = chunks(count, arrays[0].shape[-2] * arrays[1].shape[-2])
    return leading, count, pieces, lambda piece: [None if x is None else x[piece] for x in flat]


def flat_mask(mask, leading, *flat):
    """A mask (..., tokens) of arrays (*leading, tokens, ...), which may lack axes, as (*flat, tokens); None stays."""
    return (
        mask if mask is None else np.broadcast_to(mask, (*leading, mask.shape[-1])).reshape(*flat, mask.shape[-1])
    )


def _join(parts, leading):
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return whole.reshape(*leading, *whole.shape[1:])
