"""No value is written that a second source does not confirm."""

from __future__ import annotations

import certificates
import numpy as np
import second_source


class DisagreementError(Exception):
    """Two sources of one value differ."""


def agree(what, found, expected, tolerance):
    found, expected = (np.asarray(x, dtype=np.float64) for x in (found, expected))
    if found.shape != expected.shape:
        raise DisagreementError(f"{what}: shapes {found.shape} and {expected.shape}")
    scale = max(1e-30, np.abs(expected).max(initial=0), np.abs(found).max(initial=0))
    error = np.abs(found - expected).max(initial=0) / (scale if scale > 1e-12 else 1.0)
    if not error <= tolerance:
        raise DisagreementError(f"{what}: differ by {error:.2e} of the largest entry, allowed {tolerance:.0e}")


def judge(spec, outputs, cotangents, gradients):
    """Compare with every second source; return their names."""
    sources = certificates.certify(spec, outputs, agree)
    if spec.operator not in second_source.AXES:
        return sources
    exact = second_source.in_fifty_digits(spec.operator, spec.inputs, spec.arguments)
    for (name, found), expected in zip(outputs.items(), exact, strict=True):
        # ours holds constants such as sqrt(d) and log(n/m) in float64: half an ulp of those remains
        agree(f"{spec.id} {name}, 50 digits", found, expected, 4e-15)
    sources.append("an independent formula at 50 digits (mpmath)")
    c = list(cotangents.values())
    values, by_autograd = second_source.in_torch(spec.operator, spec.inputs, spec.arguments, list(gradients), c)
    for (name, found), expected in zip(outputs.items(), values, strict=True):
        agree(f"{spec.id} {name}, torch", found, expected, 1e-10)
    for name, found in gradients.items():
        agree(f"{spec.id} gradient of {name}, torch", found, by_autograd[name], 1e-9)
        rng = np.random.default_rng(0)
        along = rng.standard_normal(found.shape)
        derivative = second_source.derivative_in_fifty_digits(
            spec.operator, spec.inputs, spec.arguments, {name: along}, c
        )
        # one that vanishes is compared as it is: constants in float64 leave 1e-17 of it
        size = max(float(np.sqrt(np.sum(found**2) * np.sum(along**2))), 1e-3)
        agree(
            f"{spec.id} gradient of {name}, 50 digits",
            float(np.sum(found * along)) / size + 1,
            derivative / size + 1,
            1e-13,
        )
    if gradients:
        sources += ["autograd of that formula (torch, float64)", "its difference quotient at 50 digits"]
    return sources
