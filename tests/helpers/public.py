"""Every public callable, found by walking the public names, with arguments that are right, known by their names."""

import inspect

import numpy as np
from families import families

import asap_ref as ar

RNG = np.random.default_rng(0)
Q = RNG.standard_normal((2, 2, 5, 4))
S = RNG.standard_normal((2, 5, 5))
IMAGES = RNG.standard_normal((12, 8, 8))
SMALL = ar.Architecture(patch=4, width=8, n_layers=1, n_heads=2, n_classes=3)
SINKHORN = ar.Attention("sinkhorn", {"n_iter": 2})
TEACHER = ar.Transformer.create(SMALL, SINKHORN)
COMPILED, _ = ar.compile_model(TEACHER, [IMAGES], n_slices=2, quadratic=0)
AMORTIZER = ar.fit_amortizer([(Q, Q)], n_slices=2, n_iter=2)
REPORT = ar.fidelity_report(COMPILED, IMAGES)
SLICES = families(np.eye(4))
RIGHT = {  # what a parameter of that name takes
    **dict.fromkeys(("q", "k", "v"), Q),
    **{"scores": S, "dual": S[:, 0], "query_dual": S[:, 0], "plan": S, "duals": ar.Duals(S[:, 0], S[:, 0])},
    **{"x": S[0], "y": S[0], "directions": np.eye(4), "amortizer": AMORTIZER, "parts": ((SINKHORN, (0, 1)),)},
    **{"families": SLICES, "weights": np.ones((2, sum(family.count for family in SLICES)))},
    **{
        "dim": 4,
        "n_slices": 2,
        "batches": [(Q, Q)],
        "model": TEACHER,
        "inputs": IMAGES,
        "labels": np.zeros(12, int),
    },
    **{"compiled": COMPILED, "before": REPORT, "after": REPORT, "settings": ar.TrainingSettings(epochs=1)},
    **{"name": "numpy", "path": "absent.npz", "omega": 1.5},
}
OTHERS = {  # where a name means something else
    "compile_model": {"batches": [IMAGES]},
    **{name: {"omega": np.asarray(1.5)} for name in ("over_relaxed_dual", "over_relaxed_dual_vjp")},
}
HOLDERS = {
    "Amortizer",
    "Drift",
    "Duals",
    "FidelityReport",
    "Moments",
    "OnePass",
    "Quadratic",
    "Slices",
    "SufficientStatistics",
}
HOLDERS |= {
    "Cumulants",
    "Family",
    "Transformer",
    "Sequences",
    "Matcher",
    "Pairs",
}  # what they hold is checked in use


def public_callables():
    for name in sorted(ar.__all__):
        found = getattr(ar, name)
        if callable(found) and name not in HOLDERS:
            yield name, found


def parameters(name, function):
    """The arguments that are right, and the names of all parameters that can be given."""
    takes = {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD}
    right = {}
    for each in takes.values():
        if each.kind is each.VAR_POSITIONAL:
            continue
        if each.default is each.empty:
            right[each.name] = OTHERS.get(name, {}).get(each.name, RIGHT.get(each.name))
    return right, [n for n, p in takes.items() if p.kind is not p.VAR_POSITIONAL]
