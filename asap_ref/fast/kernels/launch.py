"""The kernels as methods: arrays in, arrays out, one launch each, and no wait.

Shapes: q (..., n, d), k (..., m, d), v (..., m, p); masks (..., n) and (..., m) that may broadcast. Leading axes are
problems to the kernels, numbered through. Memory beyond the arguments and results is O(n (d + L)).
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from asap_ref.fast.kernels.build import FORWARD, chosen, function, longest_slice, sort_bytes, sort_threads
from asap_ref.support.arrays import array_namespace, is_half

NOTHING = np.uintp(0)  # a null pointer


_array_forms = ContextVar("array_forms", default=False)


@contextmanager
def array_forms():
    """Do without the kernels inside: CuPy arrays then take the array forms, as other modules do.

    Examples
    --------
    >>> from asap_ref import softmax_attention
    >>> with array_forms():
    ...     out = softmax_attention(np.zeros((2, 3)), np.zeros((2, 3)), np.ones((2, 1)))
    """
    token = _array_forms.set(True)
    try:
        yield
    finally:
        _array_forms.reset(token)


def can_launch(x):
    """Say whether kernels are to be taken for an array: its module compiles them, as CuPy does by ``RawModule``."""
    return not _array_forms.get() and hasattr(array_namespace(x), "RawModule")


_limits = {}  # by the name of a device: to ask one takes as long as to launch a kernel


def shared_limit(device, name):
    """Bytes of shared memory that a block of threads may have there."""
    if name not in _limits:
        _limits[name] = device.attributes["MaxSharedMemoryPerBlockOptin"]
    return _limits[name]


def dtype_name(x):
    """Name the dtype of an array: "float32" and so on."""
    return str(x.dtype).rpartition(".")[-1]


def number_like(x):
    """Make an empty array that lives where x does, in the dtype that x is computed in."""
    if not is_half(x.dtype):
        return x
    xp = array_namespace(x)
    with x.device:
        return xp.empty((0,), dtype=xp.float32, device=x.device)


def computed_in(x):
    """Bring x into the dtype that it is computed in."""
    xp = array_namespace(x)
    return xp.astype(x, xp.float32) if is_half(x.dtype) else x


class Problems:
    """Queries, keys and values of many problems, with their masks, as the kernels take them.

    Where there are no values yet, ``p`` is the dimension they will have, so that one compilation serves both.
    ``fit`` says whether the kernels can hold them: large dimensions need more shared memory than a device has.
    """

    def __init__(self, q, k, v=None, query_mask=None, key_mask=None, *, p=None, parts=FORWARD):
        self.xp = array_namespace(q)
        self.leading, (self.n, self.d), self.m = q.shape[:-2], q.shape[-2:], k.shape[-2]
        self.p = v.shape[-1] if v is not None else p or self.d
        self.count = math.prod(self.leading)
        self.store = dtype_name(q)
        self.real = "float32" if is_half(q.dtype) else self.store
        self.like, self.number = q, np.dtype(self.real).type
        self.device = str(q.device)
        self.limit = shared_limit(q.device, self.device)
        self.build = chosen(self.real, self.store, self.d, self.p, self.limit, parts)
        self.fit = self.build is not None and self.count > 0
        if self.fit:
            self.q, self.k, self.v = (x if x is None else contiguous(x) for x in (q, k, v))
            self.query_mask = mask_rows(query_mask, self.leading, self.n)
            self.key_mask = mask_rows(key_mask, self.leading, self.m)
            self.scale = self.number(self.d**-0.5)

    @property
    def sides(self):
        """(tokens, mask, length) of queries, and of keys."""
        return (self.q, self.query_mask, self.n), (self.k, self.key_mask, self.m)

    def sides_from(self, first):
        """Both sides, "query" or "key" first."""
        return self.sides if first == "query" else self.sides[::-1]

    def empty(self, *shape, dtype=None):
        """Make room on the device, in the dtype that is computed in."""
        with self.like.device:  # CuPy makes arrays on the device that is current, whichever it is asked for
            return self.xp.empty(shape, dtype=dtype or getattr(self.xp, self.real), device=self.like.device)

    def as_read(self, x):
        """An array as kernels read it, without gaps and in the dtype that is computed in; None as it is."""
        if x is None:
            return None
        real = getattr(self.xp, self.real)
        return contiguous(x if x.dtype == real else self.xp.astype(x, real))

    def dual_as_read(self, side, dual):
        """A dual of the "query" or "key" side as kernels read it; ValueError if it is not of that shape."""
        shape = (*self.leading, self.n if side == "query" else self.m)
        if dual is not None and tuple(dual.shape) != shape:
            raise ValueError(
                f"the {side} dual must have shape {shape}, a number a token, got {tuple(dual.shape)}; one that several "
                "problems share is to be repeated by broadcast_to"
            )
        return self.as_read(dual)

    def launch(self, name, blocks, *args, threads=None, shared=None):
        """Launch a kernel: ints become int32, floats what is computed in, None a null pointer."""
        threads, shared = (
            threads or self.build.threads,
            self.build.shared.get(name, 0) if shared is None else shared,
        )
        of_kind = {int: np.int32, float: self.number, type(None): lambda _: NOTHING}
        args = tuple(of_kind[type(x)](x) if type(x) in of_kind else x for x in args)
        with self.like.device:  # which may not be the current one
            kernel = function(self.xp, self.device, self.build, name, self.limit)
            kernel((blocks,), (threads,), args, shared_mem=shared)

    def tiles(self, length):
        """Blocks that have a tile of rows each."""
        return self.count * -(-length // self.build.rows)

    # ---------------------------------------------------------------------------------------- half steps, and the end

    def key_dual(self, query_dual, epsilon, out=None):
        """Half step onto keys, `entropic_c_transform`: (..., n) -> (..., m)."""
        return self._half_step("key", query_dual, epsilon, out)

    def query_dual(self, key_dual, epsilon, out=None):
        """Half step onto queries: (..., m) or None, which is zero, -> (..., n)."""
        return self._half_step("query", key_dual, epsilon, out)

    def _half_step(self, onto, dual, epsilon, out):
        (a, a_mask, n), (b, b_mask, m) = self.sides_from(onto)
        dual = self.dual_as_read("query" if onto == "key" else "key", dual)
        out = self.empty(*self.leading, n) if out is None else out
        sizes, settings = (n, m, self.d, int(onto == "key")), (self.scale, float(epsilon))
        self.launch("lse", self.tiles(n), a, b, dual, *a_mask, *b_mask, out, *sizes, *settings)
        return out

    def attend(self, key_dual, epsilon, found=None, own=None):
        """softmax_j((S_ij + g_j) / epsilon) v: (..., m) or None -> (..., n, p); ``found`` is where to report to.

        With ``own``, the query dual (..., n), the plan is that of both duals, not normalised.
        """
        key_dual, own = self.dual_as_read("key", key_dual), self.dual_as_read("query", own)
        out = self.empty(*self.leading, self.n, self.p, dtype=self.like.dtype)
        arrays = (self.q, self.k, self.v, key_dual, own, *self.query_mask, *self.key_mask, out)
        sizes, settings = (self.n, self.m, self.d, self.p), (self.scale, float(epsilon))
        self.launch("attend", self.tiles(self.n), *arrays, *sizes, *settings, *(found or (None, 0)))
        return out

    # ------------------------------------------------------------------------------------------------------ backwards

    def pull(self, onto, own, dual, x, epsilon, *, begin=None, out):
        """Gradient of a dual, "query" or "key", from that of the other, x: (``begin`` - plan x) / mass into out."""
        (a, a_mask, n), (b, b_mask, m) = self.sides_from(onto)
        arrays = (a, b, own, dual, x, begin, *a_mask, *b_mask, out)
        sizes = (n, m, self.d, int(onto == "key"))
        self.launch("pull", self.tiles(n), *arrays, *sizes, self.scale, float(epsilon))

    def gradient(self, of, d_out, own, dual, d_own, d_dual, epsilon, found=None):
        """Gradient of the tokens, "query" or "key", from all duals of that side and the other, and their gradients."""
        (a, a_mask, n), (b, b_mask, m) = self.sides_from(of)
        x, y = (d_out, self.v) if of == "query" else (self.v, d_out)
        out = self.empty(*a.shape, dtype=self.like.dtype)
        arrays = (a, b, x, y, own, dual, d_own, d_dual, *a_mask, *b_mask, out)
        sizes = (self.count, n, m, self.d, self.p, 2 * own.shape[0] - 1, int(of == "query"))
        settings = (self.scale, float(epsilon), *(found or (None, 0)))
        self.launch("gradient", self.tiles(n), *arrays, *sizes, *settings)
        return out

    # -------------------------------------------------------------------------------------------------- the prediction

    def sort_size(self):
        """The power of two that both samples fit in, or None where shared memory cannot hold them."""
        size = 2 ** max(max(self.n, self.m) - 1, 1).bit_length()
        return size if size <= longest_slice(self.real, self.limit) else None

    def on_slices(self, theta):
        """Tokens on every slice, +inf at padding: (d, L) or (H, d, L) -> (..., L, n) and (..., L, m)."""
        L = theta.shape[-1]
        x, y = (self.empty(*self.leading, L, length) for _, _, length in self.sides)
        blocks = self.count * sum(-(-length // self.build.columns) for length in (self.n, self.m))
        sizes = (self.count, self.n, self.m, self.d, L, theta.shape[0] if theta.ndim == 3 else 1)
        self.launch("project", blocks, self.q, self.k, theta, *self.query_mask, *self.key_mask, x, y, *sizes)
        return x, y

    def potentials(self, x, y, w):
        """Potentials of the queries times the weights (H, L, 1), uncentred: (..., L, n), (..., L, m) -> (..., L, n)."""
        L, size = x.shape[-2], self.sort_size()
        phi, shared = self.empty(*self.leading, L, self.n), sort_bytes(self.real, size)
        sizes = (self.n, self.m, L, w.shape[0], size)
        self.launch("slices", self.count * L, x, y, w, phi, *sizes, threads=sort_threads(size), shared=shared)
        return phi

    def quadratic_form(self, a, A, B, c, R, F_k, F_q, Z):
        """G (..., d, d) and h (..., d) of all families beside the slices, from the moments of the tokens."""
        d, r, H = self.d, 0 if R is None else R.shape[-1], A.shape[0]
        per_tile = 1 + d + d * d
        of_q, of_k = (
            self.empty(self.tiles(length), per_tile) if wanted else None
            for length, wanted in ((self.n, r > 0), (self.m, True))
        )
        blocks = self.tiles(self.m) + (self.tiles(self.n) if r else 0)
        sizes = (self.count, self.n, self.m, d)
        self.launch("moments", blocks, self.q, self.k, *self.query_mask, *self.key_mask, of_q, of_k, *sizes)
        work = self.empty(self.count, 2 * d * (1 + d) + 3 * d * r + 2 * r * r + 4 * r)
        G, h = self.empty(self.count, d, d), self.empty(self.count, d)
        constants = (a, A, B, c, R, F_k, F_q, Z)
        self.launch("form", self.count, of_q, of_k, *constants, work, G, h, self.n, self.m, d, r, H)
        return G, h

    def dual(self, phi, G, h):
        """Sum of the potentials (..., L, n) and of the quadratic form, where there are any, -> (..., n)."""
        f = self.empty(*self.leading, self.n)
        sizes = (self.n, self.d, 0 if phi is None else phi.shape[-2])
        self.launch("dual", self.tiles(self.n), phi, self.q, G, h, *self.query_mask, f, *sizes)
        return f


def contiguous(x):
    """The array as kernels read it, copied only where it is a view with gaps."""
    flags = getattr(x, "flags", None)
    if flags is None or flags.c_contiguous:
        return x
    with x.device:
        return array_namespace(x).ascontiguousarray(x)


def mask_rows(mask, leading, length):
    """(mask, every, rows): problem b is masked by row ``b // every % rows``, so that a mask is shared, not copied.

    Examples
    --------
    >>> mask_rows(np.ones((3, 1, 5), bool), (3, 8), 5)[1:]  # a sequence, one mask: its 8 heads share it
    (8, 3)
    >>> mask_rows(np.ones((8, 5), bool), (3, 8), 5)[1:]  # a head, one mask: the sequences share it
    (1, 8)
    """
    if mask is None:
        return None, 1, 1
    shape = (1,) * (len(leading) + 1 - mask.ndim) + tuple(mask.shape[:-1])
    own = [axis for axis, size in enumerate(shape) if size > 1]
    first, last = (own[0], own[-1] + 1) if own else (0, 0)  # one for all
    if shape[first:last] != tuple(leading[first:last]):  # shared along an axis between others: rare
        xp = array_namespace(mask)
        mask, first, last = xp.broadcast_to(mask, (*leading, length)), 0, len(leading)
        shape = leading
    return contiguous(mask), math.prod(leading[last:]), math.prod(shape[first:last])
