"""What the package computes for a case: the readable operators in extended precision, rounded once to float64.

NumPy's longdouble has 64 bits of mantissa on x86, and no BLAS and no vector unit handles it: the same bytes come
out on every such machine, but for a rare last bit where the processors' logarithms differ.
"""

from __future__ import annotations

import zlib

import certificates
import numpy as np
import second_source
from inputs_v1 import grid
from judgement import agree
from language_v1 import OPERATORS

import asap_ref as ar
from asap_ref.method import attention as readable
from asap_ref.oracle import reference
from asap_ref.oracle.truth import PLAIN

LONG = np.longdouble
PADDED = {  # outputs that are zero at padding: the masks of their trailing axes
    "n": ("query_mask", "x_mask"),
    "m": ("key_mask", "y_mask"),
}


def in_long(inputs):
    return {name: x.astype(LONG) if x.dtype.kind == "f" else x for name, x in inputs.items()}


def differentiable(spec):
    if spec.fixed == "all":
        return []
    return [name for name, x in spec.inputs.items() if x.dtype.kind == "f" and name not in spec.fixed]


def our_values(spec):
    """Outputs, cotangents and gradients by name, in extended precision."""
    names = list(OPERATORS[spec.operator][2])
    if spec.operator == "fit_amortizer":  # LAPACK's last bits differ from machine to machine: see the judge
        exact = certificates.ridge_at_fifty_digits(spec.inputs, spec.arguments)
        ours = reference.fit_amortizer(**spec.inputs, **spec.arguments)
        for name, found, expected in zip(names, ours, exact, strict=True):
            agree(f"{spec.id} {name}", found, expected, 1e-9)
        return dict(zip(names, exact, strict=True)), {}, {}
    inputs, function = in_long(spec.inputs), getattr(PLAIN, spec.operator)
    value = function(**inputs, **spec.arguments)
    outputs = dict(zip(names, value if isinstance(value, tuple) else (value,), strict=True))
    if spec.operator == "slice_directions":  # an example of directions; only their properties are compared
        outputs = {"directions": outputs["directions"].astype(np.float32)}
    wanted = differentiable(spec)
    if not wanted:
        return outputs, {}, {}
    rng = np.random.default_rng(zlib.crc32(f"cotangent of {spec.id}".encode()))
    cotangents = {name: grid(rng, *y.shape) for name, y in outputs.items()}
    _, vjp = getattr(PLAIN, f"{spec.operator}_vjp")(**inputs, **spec.arguments)
    long = [c.astype(LONG) for c in cotangents.values()]
    if hasattr(value, "_fields"):
        found = vjp(type(value)(*long))
    else:
        found = vjp(tuple(long) if isinstance(value, tuple) else long[0])
    floats = [name for name, x in spec.inputs.items() if x.dtype.kind == "f"]
    gradients = {name: g for name, g in zip(floats, found, strict=False) if name in wanted}
    return outputs, cotangents, gradients


def intermediates(spec):
    """What stands between inputs and outputs."""
    x = in_long(spec.inputs)
    masks = {name: x.pop(name) for name in list(x) if name.endswith("mask")}
    a = spec.arguments
    if spec.operator in ("sinkhorn", "sinkhorn_attention"):
        S = x["scores"] if "scores" in x else ar.attention_scores(*(_kept(x, masks)[:2]))
        init = {"init": x["init"]} if "init" in x else {}
        steps = [ar.sinkhorn(S, n_iter=t, epsilon=a["epsilon"], **init, **masks) for t in range(a["n_iter"] + 1)]
        steps = steps[:: max(1, a["n_iter"] // 10)]
        return {
            "query_dual_by_iteration": np.stack([s.query for s in steps]),
            "key_dual_by_iteration": np.stack([s.key for s in steps]),
        }
    if spec.operator == "kantorovich_potentials_1d":
        if masks:
            return {}
        return {f"{side}_order": np.argsort(x[side], axis=-1, stable=True) for side in "xy"}
    if spec.operator == "sliced_potentials":
        scale = LONG(x["q"].shape[-1]) ** LONG(-0.25)
        return {
            f"projected_{side}": scale * np.swapaxes(tokens @ x["directions"], -1, -2)
            for side, tokens in zip("qk", _kept(x, masks), strict=False)
        }
    if spec.operator in ("asap_attention", "amortized_query_dual"):
        q, k = _kept(x, masks)[:2]
        settings = dict(cumulants=a["cumulants"], basis=x.get("basis"), **masks)
        # family by family, as version 1 keeps them: of queries that no key meets as well, whose dual is zero
        made = reference.families(x["directions"], x.get("basis"), cumulants=a["cumulants"])
        found = {"features": np.concatenate([family.features(q, k, **masks) for family in made], axis=-2)}
        if spec.operator == "asap_attention":
            f_hat = reference.amortized_query_dual(q, k, x["directions"], x["weights"], **settings)
            S = ar.attention_scores(q, k)
            duals = ar.sinkhorn(S, n_iter=1 + a["refine"], init=f_hat, epsilon=a["epsilon"], **masks)
            found |= {"predicted_dual": f_hat, "key_dual": duals.key, "query_dual": duals.query}
        return found
    return {}


def _kept(x, masks):
    v = x.get("v", x["k"])
    return readable.without_padding(x["q"], x["k"], v, masks.get("query_mask"), masks.get("key_mask"))


def must_be_zero(spec, outputs):
    """Where padding makes an output exactly zero."""
    if not any(name.endswith("mask") for name in spec.inputs) or spec.operator not in second_source.AXES:
        return {}
    _, out_axes = second_source.axes(spec.operator, spec.arguments)
    found = {}
    for (name, y), named in zip(outputs.items(), out_axes, strict=True):
        zero = np.zeros(y.shape, bool)
        for position, axis in enumerate(reversed(named.split()), start=1):
            for mask in PADDED.get(axis, ()):
                if mask in spec.inputs:
                    padded = ~spec.inputs[mask]  # (leading..., tokens), 1 where it broadcasts
                    after = (None,) * (position - 1)
                    lead = padded[..., *(None,) * (len(named.split()) - position), :]
                    zero |= lead[(..., *after)]
        if zero.any():
            found[name] = zero
    return found
