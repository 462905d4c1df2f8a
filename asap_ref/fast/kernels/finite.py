"""Non-finite results found without a wait: a flag on the device, read when the host waits anyway.

The last kernel of an attention sets the flag of its device where an entry of its result is not finite. The host looks
at it when results are brought there (`support.arrays.to_numpy`), or when asked (`raise_if_not_finite`). Who takes
results off the device in another way, by CuPy's ``x.get()`` say, and does not ask, finds the NaN there. Inside another
operator nothing is flagged: the outermost one looks at its own result.
"""

from __future__ import annotations

from asap_ref.support import arrays

_names = []  # of operators, whose places + 1 are what a flag is set to
_flags = {}  # by array module and device
_waiting = {}  # those that a kernel may have set since they were read last


def flag(xp, like, name):
    """(flag on the device of ``like``, what to set it to) for a result of the operator of that name."""
    key = xp.__name__, str(like.device)
    if key not in _flags:
        _flags[key] = xp.zeros(1, dtype=xp.int32, device=like.device)
    if name not in _names:
        _names.append(name)
    _waiting[key] = _flags[key]
    return _flags[key], _names.index(name) + 1


def raise_if_not_finite():
    """Wait for the devices that have run kernels since the last look; raise if a result of theirs is not finite.

    On each device the current stream is waited for, no other: what runs on another stream may not have reported yet.
    Look inside ``with stream:``, or after ``stream.synchronize()``.

    Raises
    ------
    FloatingPointError
        With the name of the operator. Which input is to blame is not known by then.

    Examples
    --------
    >>> raise_if_not_finite()  # nothing was run
    """
    while _waiting:
        (_, device), found = _waiting.popitem()
        with found.device:
            code = int(found[0])
            if code:
                found[0] = 0
        if code:
            raise FloatingPointError(
                f"{_names[code - 1]}: a result computed on {device} since the last look is not finite; ask its inputs "
                "for NaN and infinity with isfinite (padding belongs in query_mask and key_mask), or use float64"
            )


arrays.BEFORE_COPYING.append(raise_if_not_finite)
