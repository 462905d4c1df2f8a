"""The query dual predicted on the device, up to a constant: three launches, and two more with a quadratic form.

    project, slices     potentials of every slice, weighted
    moments, form       what cumulants, quadratic and moment features fold into: a quadratic form a problem
    dual                their sum

Constants are what `fast.prediction` works out from an amortizer: scaled directions theta (d, L) or (H, d, L), weights
w (H, L), and a, A, B, c, R, forms_k, forms_q, bilinear, or eight times None where there are slices alone; in the dtype
that is computed in.
"""

from __future__ import annotations

from asap_ref.fast.kernels.launch import Problems


def predict(q, k, constants, *, query_mask=None, key_mask=None, p=None):
    """(..., H, n, d), (..., H, m, d) -> (..., H, n), zero at padding; None where the kernels cannot hold the problem.

    ``p`` is the dimension of the values of the attention that follows, so that one compilation serves both.
    """
    theta, w, *others = constants
    problems = Problems(q, k, None, query_mask, key_mask, p=p)
    if not problems.fit or problems.sort_size() is None:
        return None
    phi = problems.potentials(*problems.on_slices(theta), w)
    form, row = (None, None) if others[0] is None else problems.quadratic_form(*others)
    return problems.dual(phi, form, row)
