"""The query dual predicted on the device, up to a constant: three launches, and two more with a quadratic form.

    project, slices     potentials of every slice, weighted
    moments, form       what cumulants, quadratic and moment features fold into: a quadratic form a problem
    dual                their sum

Constants are those of the fast forms of the families, in the dtype that is computed in: scaled directions theta (d, L)
or (H, d, L) and weights w (H, L, 1) of the slices (fast/slices.py); a, A, B, c and R, F_k, F_q, Z, or None for these
four, of the quadratic form (fast/quadratic_form.py).
"""

from __future__ import annotations

from asap_ref.fast.kernels.launch import Problems


def predict(q, k, slices, quadratic, *, query_mask=None, key_mask=None, p=None):
    """(..., H, n, d), (..., H, m, d) -> (..., H, n), zero at padding; None where the kernels cannot hold the problem.

    ``slices`` and ``quadratic`` are tuples of constants, or None. ``p`` is the dimension of the values of the attention
    that follows, so that one compilation serves both.
    """
    problems = Problems(q, k, None, query_mask, key_mask, p=p)
    if not problems.fit or (slices is not None and problems.sort_size() is None):
        return None
    slices, quadratic = (
        None if given is None else tuple(map(problems.as_read, given)) for given in (slices, quadratic)
    )
    phi = None if slices is None else problems.potentials(*problems.on_slices(slices[0]), slices[1])
    G, h = (None, None) if quadratic is None else problems.quadratic_form(*quadratic)
    return problems.dual(phi, G, h)
