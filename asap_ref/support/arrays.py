"""The array-module switch, and the few functions the array API standard lacks.

Every operator begins with ``xp = array_namespace(q, k)`` and from then on speaks only the array API
standard (https://data-apis.org/array-api), so the same lines run on NumPy, CuPy, torch and JAX. This is
the only file that knows array-api-compat.
"""

from __future__ import annotations

import functools
import importlib

import array_api_compat as compat
import numpy as np

MODULES = {
    "numpy": "array_api_compat.numpy",
    "cupy": "array_api_compat.cupy",
    "torch": "array_api_compat.torch",
    "jax": "jax.numpy",
    "array_api_strict": "array_api_strict",
}


def array_module(name):
    """Return the array module of that name, in a form that follows the array API standard.

    Parameters
    ----------
    name : {"numpy", "cupy", "torch", "jax", "array_api_strict"}

    Returns
    -------
    module

    Raises
    ------
    ValueError
        If the name is not one of these.
    ModuleNotFoundError
        If the library is not installed; the message says how to install it.

    Examples
    --------
    >>> xp = array_module("numpy")
    >>> xp.asarray([1.0, 2.0]).dtype
    dtype('float64')
    """
    if not isinstance(name, str) or name not in MODULES:
        raise ValueError(f"array_module: name must be one of {', '.join(MODULES)}, got {name!r:.60}")
    try:
        return importlib.import_module(MODULES[name])
    except ImportError as error:
        install = {"cupy": "asap-ref[cuda12]", "array_api_strict": "array-api-strict"}
        other = ", or with CUDA 13: pip install 'asap-ref[cuda13]'" if name == "cupy" else ""
        raise ModuleNotFoundError(
            f"array module {name!r} cannot be imported ({error}); try: pip install '{install.get(name, name)}'{other}"
        ) from error


_MODULE_OF = {}  # type of array -> its module: asked for at every step, and always the same


def _module_of(x):
    """Return the module of an array, or None if x is not an array we can compute with."""
    kind = type(x)
    if kind not in _MODULE_OF:
        # a masked array would be computed with as if it had no mask, and a matrix multiplies with *
        if not compat.is_array_api_obj(x) or issubclass(kind, np.ma.MaskedArray | np.matrix):
            return None
        _MODULE_OF[kind] = compat.array_namespace(x)
    return _MODULE_OF[kind]


def is_array(x):
    """Say whether x is an array of a module we can compute with."""
    return _module_of(x) is not None


def array_namespace(*arrays):
    """Return the one array module, on one device, that all the arrays belong to.

    Parameters
    ----------
    *arrays : array or None
        None stands for an argument that was not given, and is passed over.

    Returns
    -------
    module

    Raises
    ------
    TypeError
        If an argument is not an array, or two come from different modules or devices. NumPy's matrix and
        masked arrays are refused too: their arithmetic is not that of an array.

    Examples
    --------
    >>> import numpy as np
    >>> array_namespace(np.ones(3), None).__name__
    'array_api_compat.numpy'
    """
    given = [x for x in arrays if x is not None]
    modules = [_module_of(x) for x in given]
    for x, module in zip(given, modules, strict=True):
        if module is None:
            raise TypeError(f"expected an array (NumPy, CuPy, torch, JAX, ...), got {type(x).__name__}: {x!r:.60}")
    if not given:
        raise TypeError("array_namespace: expected at least one array, got none")
    if any(module is not modules[0] for module in modules):
        names = sorted({module.__name__.removeprefix("array_api_compat.") for module in modules})
        raise TypeError(f"arrays of different modules cannot be mixed: got {names}; convert them to one of these")
    if len(given) > 1 and not isinstance(given[0], np.ndarray):  # NumPy knows one device
        devices = [compat.device(x) for x in given if not is_traced(x)]  # what is traced is nowhere yet
        if any(device != devices[0] for device in devices):
            names = sorted({str(device) for device in devices})
            raise TypeError(f"arrays on different devices cannot be mixed: got {names}; move them to one")
    return modules[0]


BEFORE_COPYING = []  # called before a copy is made: errors that a device has found meanwhile are raised there


def to_numpy(x):
    """Copy an array of any module to the host, as a NumPy array.

    Parameters
    ----------
    x : array

    Returns
    -------
    numpy.ndarray
        Of the same dtype; float32 for bfloat16, which NumPy does not have, and which float32 holds exactly.

    Raises
    ------
    TypeError
        If x is no array, or a masked one, whose mask would be lost.

    Examples
    --------
    >>> import array_api_strict
    >>> to_numpy(array_api_strict.asarray([1.0, 2.0]))
    array([1., 2.])
    """
    xp = array_namespace(x)
    if getattr(x.dtype, "kind", "f") == "O":
        raise TypeError("to_numpy: x is an array of objects; expected one of numbers")
    for look in BEFORE_COPYING if not isinstance(x, np.ndarray) else ():
        look()
    if str(getattr(x, "dtype", "")).endswith("bfloat16"):
        x = xp.astype(x, xp.float32)
    if compat.is_torch_array(x):
        try:
            return x.detach().resolve_conj().resolve_neg().cpu().numpy()
        except TypeError as error:  # float8, say
            raise TypeError(
                f"to_numpy: x is of {x.dtype}, which NumPy does not have; convert it to float32"
            ) from error
    if compat.is_cupy_array(x):
        return x.get()
    if type(x).__module__.startswith("array_api_strict"):
        import array_api_strict

        return np.asarray(x.to_device(array_api_strict.Device("CPU_DEVICE")))
    return np.asarray(x)


def from_numpy(x, xp, *, dtype=None, device=None):
    """Copy a NumPy array into a module, whatever its layout: torch takes no reversed, read-only or big-endian memory.

    Examples
    --------
    >>> from_numpy(np.arange(3.0)[::-1], array_module("numpy"))
    array([2., 1., 0.])
    """
    x = np.asarray(x)
    own = np.array(x, dtype=x.dtype.newbyteorder("="), order="C")
    return xp.asarray(own, dtype=dtype, device=device)


def as_indices(x):
    """Integers of any type as those by which their module indexes: torch does not by uint8 or int16, say."""
    xp = array_namespace(x)
    return xp.astype(x, xp.__array_namespace_info__().default_dtypes()["indexing"], copy=False)


def is_traced(x):
    """Say whether x stands for values that are not known yet, as inside ``jax.jit`` or ``jax.grad``."""
    return compat.is_jax_array(x) and hasattr(x, "_trace")


def check_values_are_known(x, name):
    """Raise if x is traced."""
    if is_traced(x):
        raise TypeError(
            f"{name} is traced by JAX (jit, grad or vmap), but its values are looked at; call it outside of these, "
            "take gradients from the function whose name ends in _vjp, or wrap it in jax.pure_callback"
        )


def is_made_under_a_mode(x):
    """Say whether an array serves only where it was made: traced, of torch's inference mode, or a fake tensor."""
    if compat.is_torch_array(x):
        return x.is_inference() or type(x).__name__ != "Tensor"
    return is_traced(x)


def one_pass(function):
    """Make an elementwise ``function(xp, *arrays)`` one pass over its arrays, where the module can: CuPy's `fuse`.

    It is called without ``xp``, and elsewhere runs as it is written. It may depend on nothing but its arguments,
    since CuPy compiles it once for each set of dtypes.

    Examples
    --------
    >>> import numpy as np
    >>> @one_pass
    ... def exp_of_sum(xp, x, y):
    ...     return xp.exp(x + y)
    >>> exp_of_sum(np.asarray([0.0, 1.0]), np.asarray([0.0, -1.0]))
    array([1., 1.])
    """
    of_module = {}

    @functools.wraps(function)
    def call(*arrays):
        xp = _module_of(arrays[0])
        if xp not in of_module:
            written = functools.update_wrapper(functools.partial(function, xp), function)
            of_module[xp] = xp.fuse(written) if hasattr(xp, "fuse") else written
        return of_module[xp](*arrays)

    return call


def scattered(values, index):
    """Put values at the indices of a flat array, which are all of 0 .. size - 1: the inverse of ``take``; or None.

    The standard has no scatter, but NumPy and CuPy do; on other modules the answer is None. Shapes are kept.
    """
    if not (isinstance(values, np.ndarray) or compat.is_cupy_array(values)):
        return None
    out = array_namespace(values).empty_like(values)
    out.reshape(-1)[index] = values
    return out


def count_of(batch):
    """Count the examples of a batch; arrays of the standard have no ``len``."""
    return batch.shape[0] if getattr(batch, "shape", ()) else len(batch)


def is_half(dtype):
    """Say whether dtype is float16 or bfloat16 (which the standard does not know, so by name)."""
    return str(dtype).rpartition(".")[-1] in ("float16", "bfloat16")


def logsumexp(x, *, axis):
    """Log of the sum of exponentials along one axis, safe for entries of any size and for -inf.

    Examples
    --------
    >>> import numpy as np
    >>> float(logsumexp(np.asarray([1e4, 1e4]), axis=-1).round(3))
    10000.693
    """
    xp = array_namespace(x)
    top = xp.max(x, axis=axis, keepdims=True)
    top = xp.where(top == -xp.inf, 0.0, top)  # an empty sum: avoids -inf - -inf
    total = xp.sum(xp.exp(x - top), axis=axis, keepdims=True)
    with np.errstate(divide="ignore"):  # the log of an empty sum is meant
        return xp.squeeze(xp.log(total) + top, axis=axis)


def softmax(x, *, axis, valid=None):
    """Exponentials of the valid entries, normalised to sum to one along one axis; zero at others, and where none is.

    Where every valid entry is -inf, as where scores overflow, it is NaN: there is nothing to normalise.

    Examples
    --------
    >>> import numpy as np
    >>> softmax(np.asarray([0.0, 9.0, 0.0]), axis=-1, valid=np.asarray([True, False, True]))
    array([0.5, 0. , 0.5])
    """
    xp = array_namespace(x)
    x = x if valid is None else xp.where(valid, x, -xp.inf)
    top = xp.max(x, axis=axis, keepdims=True)
    some = None if valid is None else xp.any(valid, axis=axis, keepdims=True)
    e = xp.exp(x - (top if valid is None else xp.where(some, top, 0.0)))
    total = xp.sum(e, axis=axis, keepdims=True)
    return e / (total if valid is None else xp.where(some, total, 1.0))


def transpose(x):
    """Swap the last two axes: (..., n, m) -> (..., m, n)."""
    return array_namespace(x).matrix_transpose(x)


def times(x, matrix):
    """Rows times a matrix, x (..., n, d), (d, r) or (..., d, r) -> (..., n, r); one product if it is one for all.

    A batch of products with one factor in common is a call of BLAS each on NumPy, and several launches elsewhere.
    """
    if matrix.ndim > 2:
        return x @ matrix
    xp = array_namespace(x, matrix)
    return xp.reshape(xp.reshape(x, (-1, x.shape[-1])) @ matrix, (*x.shape[:-1], matrix.shape[-1]))


def matvec(matrix, vector):
    """Matrix times vector: (..., n, m), (..., m) -> (..., n)."""
    return (matrix @ vector[..., :, None])[..., :, 0]


def vecmat(vector, matrix):
    """Vector times matrix: (..., n), (..., n, m) -> (..., m); the transposed product, without a transposed copy."""
    return (vector[..., None, :] @ matrix)[..., 0, :]


def sum_rows(rows, index, size):
    """Add up the rows of each index, the adjoint of ``take(table, index, axis=0)``.

    (N, w), (N,) -> (size, w). The standard has no scatter-add: but on NumPy this is a product with the one-hot
    matrix, O(N size w). NumPy sorts, and adds up each run of equal indices, O(N (w + log N)).

    Examples
    --------
    >>> import numpy as np
    >>> sum_rows(np.asarray([[1.0], [2.0], [3.0]]), np.asarray([2, 0, 2]), 4)
    array([[2.],
           [0.],
           [4.],
           [0.]])
    """
    xp = array_namespace(rows, index)
    if isinstance(rows, np.ndarray):
        order = np.argsort(index, kind="stable")
        found, starts = np.unique(index[order], return_index=True)
        total = np.zeros((size, rows.shape[1]), rows.dtype)
        total[found] = np.add.reduceat(rows[order], starts, axis=0)
        return total
    one_hot = index[None, :] == xp.arange(size, dtype=index.dtype, device=index.device)[:, None]  # (size, N)
    return xp.astype(one_hot, rows.dtype) @ rows
