"""Expected values of any problem, at the time of the check: the package's plainest operators in float64.

What is stored in files has a second source as well (tests/oracle/making); these are the operators that it confirmed,
and the tests hold drawn problems against it too.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from asap_ref.method import attention as readable
from asap_ref.oracle import reference

FIXED = {  # arrays without a gradient; "all": none has one
    "marginal_error": "all",
    "fit_amortizer": "all",
    "slice_directions": "all",
    "kantorovich_potentials_1d": ("x_weights", "y_weights"),
    "kl_loss": ("scores", "teacher_columns"),
    "dual_loss": ("scores",),
    "quadratic_features": ("basis",),
    "moment_features": ("basis",),
    "dual_features": ("basis",),
    "amortized_query_dual": ("basis",),
    "asap_attention": ("basis",),
}


def asap_attention(q, k, v, directions, weights, basis=None, **settings):
    """ASAP attention put together from its parts."""
    return asap_attention_vjp(q, k, v, directions, weights, basis, **settings)[0]


def asap_attention_vjp(q, k, v, directions, weights, basis=None, *, epsilon, cumulants, refine, **masks):
    """The same with the gradients of its amortizer too: (dq, dk, dv, d_directions, d_weights)."""
    q, k, v = readable.without_padding(q, k, v, masks.get("query_mask"), masks.get("key_mask"))
    S, scores_vjp = reference.attention_scores_vjp(q, k)
    f_hat, predict_vjp = reference.amortized_query_dual_vjp(
        q, k, directions, weights, cumulants=cumulants, basis=basis, **masks
    )
    duals, duals_vjp = reference.sinkhorn_vjp(S, n_iter=1 + refine, init=f_hat, epsilon=epsilon, **masks)
    P, plan_vjp = reference.transport_plan_vjp(S, *duals, epsilon=epsilon, **masks)

    def vjp(d_out):
        d_S, *d_duals = plan_vjp(d_out @ v.mT)
        d_S_duals, d_f_hat = duals_vjp(type(duals)(*d_duals))
        dq, dk = scores_vjp(d_S + d_S_duals)
        dq_features, dk_features, d_directions, d_weights = predict_vjp(d_f_hat)
        return dq + dq_features, dk + dk_features, P.mT @ d_out, d_directions, d_weights

    return P @ v, vjp


PLAIN = SimpleNamespace(**vars(reference))  # the definitions, not the fast forms
for _name in ("softmax_attention", "sinkhorn_attention"):
    setattr(PLAIN, _name, getattr(readable, _name))
    setattr(PLAIN, f"{_name}_vjp", getattr(readable, f"{_name}_vjp"))
PLAIN.asap_attention, PLAIN.asap_attention_vjp = asap_attention, asap_attention_vjp


def differentiable(operator, inputs):
    """Names of the arrays that have a gradient."""
    fixed = FIXED.get(operator, ())
    if fixed == "all":
        return []
    return [name for name, x in inputs.items() if x.dtype.kind == "f" and name not in fixed]


def outputs_of(operator, names, inputs, arguments):
    """Outputs by name."""
    value = getattr(PLAIN, operator)(**inputs, **arguments)
    value = value if isinstance(value, tuple) else (value,)
    return {name: np.asarray(x) for name, x in zip(names, value, strict=True)}


def gradients_of(operator, inputs, arguments, cotangents):
    """Gradients, by input, of the sum over outputs of sum(cotangent * output)."""
    wanted = differentiable(operator, inputs)
    if not wanted:
        return {}
    value, vjp = getattr(PLAIN, f"{operator}_vjp")(**inputs, **arguments)
    cotangents = tuple(cotangents)
    if hasattr(value, "_fields"):
        found = vjp(type(value)(*cotangents))
    else:
        found = vjp(cotangents if isinstance(value, tuple) else cotangents[0])
    floats = [name for name, x in inputs.items() if x.dtype.kind == "f"]
    found = found if isinstance(found, tuple) else (found,)
    return {name: np.asarray(g) for name, g in zip(floats, found, strict=False) if name in wanted}
