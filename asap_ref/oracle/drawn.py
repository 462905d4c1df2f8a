"""Drawn cases: a recipe becomes a case when it is asked for, with expected values and tolerances for one dtype."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from asap_ref.oracle import ties, truth
from asap_ref.oracle.padding import padded
from asap_ref.oracle.recipe import ARGUMENTS, LAYOUTS, OF_HEADS, Recipe, arrays_of, rounded
from asap_ref.oracle.stored import Case, CaseAtHand, flags, operators
from asap_ref.oracle.verdict import GRADIENT, check
from asap_ref.support.masks import keep_tokens, valid_pairs

GAUGES = {
    "sinkhorn": [["query_dual", 1], ["key_dual", -1]],
    "two_sided_c_transform": [["query_dual", 1], ["key_dual", -1]],
    "kantorovich_potentials_1d": [["phi", 1], ["psi", -1]],
    "amortized_query_dual": [["query_dual", 1]],
}
ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
LEAST = {  # tolerances of results, and of gradients, that any careful implementation meets
    "float64": (1e-10, 1e-9),
    "float32": (2e-5, 1e-4),
    "float16": (2.0**-9, 2.0**-8),
    "bfloat16": (2.0**-6, 2.0**-5),
}
# psi is a minimum over samples; near those that attain it others do within a rounding, and its gradient goes to either
NEAR_TIES = ("kantorovich_potentials_1d", "sliced_potentials")
WITH_EXPONENTS = ("lse", "attend", "softmax_attention", "sinkhorn_attention", "sliced_attention", "asap_attention")
MOST = 0.25  # beyond it a result says nothing
NOISE = 1e-13  # numbers here are of the size of one
ROUNDINGS = 8  # how often the inputs, or what has their size, may be rounded on the way
STEPS = (16, 256)  # how many roundings of an exponent a result, and a gradient, may show
NAIVE = 4  # times the error of the plainest operators in float32


@dataclass(frozen=True)
class DrawnCase(Case):
    """A case whose arrays are made from a seed; see `Recipe`."""

    recipe: Recipe = None
    dtype: str = "float64"

    @classmethod
    def of(cls, recipe, **words):
        """Make the case of a recipe; words are those of `Case` that are not the usual ones."""
        names = flags_of(recipe)
        said = dict(
            id=f"{recipe.operator}/seed_{recipe.seed}",
            operator=recipe.operator,
            flags=tuple(names),
            hint="\n".join(f"{name}: {flags()[name]}" for name in names),
            note=describe(recipe),
            source=operators()[recipe.operator]["source"],
        )
        return cls(
            **said | words,
            arguments=recipe.settings,
            second_source="this package's plainest operators in float64, at the time of the check",
            rules=None,
            path=None,
            recipe=recipe,
        )._ready("float64")

    def _ready(self, dtype):
        later = Later(lambda: case.made[1])
        case = replace(self, dtype=dtype, rules=later)
        return case

    def at(self, dtype):
        """Return the case for a computation in that dtype: inputs with its digits, and what comes of these."""
        return self if dtype == self.dtype else self._ready(dtype)

    @property
    def layout(self):
        """How the inputs lie in memory."""
        return self.recipe.layout

    @functools.cached_property
    def made(self):
        """(groups of arrays, rules)."""
        return make(self.recipe, self.dtype, self)

    @property
    def _groups(self):
        return self.made[0]


class Later(Mapping):
    """A mapping that is computed when it is first looked at."""

    def __init__(self, make):
        self._make = make

    @functools.cached_property
    def _made(self):
        return self._make()

    def __getitem__(self, key):
        return self._made[key]

    def __iter__(self):
        return iter(self._made)

    def __len__(self):
        return len(self._made)


def make(recipe, dtype, case):
    """Arrays by group, and the rules that judge them."""
    operator, arguments = recipe.operator, recipe.settings
    names = list(operators()[operator]["outputs"])
    inputs = arrays_of(recipe, dtype)
    size = largest_exponent(operator, inputs, arguments)
    outputs = truth.outputs_of(operator, names, inputs, arguments)
    outputs = {name: without_noise(y, size) for name, y in outputs.items()}
    rng = np.random.default_rng([recipe.seed, 1])
    cotangents = {}
    if has_gradients(recipe):
        cotangents = {name: rounded(rng.standard_normal(y.shape), dtype) for name, y in outputs.items()}
    unasked = ties.unasked(operator, inputs, outputs, arguments)
    cotangents = {name: np.where(unasked.get(name, False), 0, c) for name, c in cotangents.items()}
    weights = list(cotangents.values())
    gradients = truth.gradients_of(operator, inputs, arguments, weights) if cotangents else {}
    gradients = {name: without_noise(g, size) for name, g in gradients.items()}
    groups = dict(inputs=inputs, outputs=outputs, cotangents=cotangents, gradients=gradients)
    groups["must_be_zero"] = zeros_of(recipe, inputs, outputs, gradients)
    rules = {
        "gauge": GAUGES.get(operator, []),
        **{key: {name: rule(x) for name, x in groups[key].items()} for key in ("outputs", "gradients")},
    }
    words = {field.name: getattr(case, field.name) for field in fields(Case)}
    errors = rounding_errors(CaseAtHand(**{**words, "rules": rules}, groups=groups), recipe.seed, dtype)
    unit = size * ROUNDOFF["float64" if dtype == "float64" else "float32"]  # half precision computes in float32
    for key, least, steps in zip(("outputs", "gradients"), LEAST[dtype], STEPS, strict=True):
        for name in groups[key]:
            if key == "gradients" and operator in NEAR_TIES and dtype == "float32":
                least = 2e-2
            of_exponents = steps * unit / rules[key][name]["scale"]
            error = max(least, of_exponents, errors.get(name if key == "outputs" else GRADIENT + name, 0.0))
            rules[key][name]["tolerance"] = {dtype: error} if error <= MOST else {}
    return groups, rules


def has_gradients(recipe):
    """Whether gradients are asked for: not where ties in a sort leave them open."""
    return recipe.values not in ("ties", "equal") and truth.FIXED.get(recipe.operator) != "all"


def without_noise(x, exponent=1.0):
    """What vanishes, and of which only rounding errors are left, is zero: a gradient of attention to a single key."""
    return x if np.abs(x).max(initial=0) > NOISE * max(exponent / 16, 1.0) else np.zeros_like(x)


def largest_exponent(operator, inputs, arguments):
    """The largest number that is exponentiated, at least 1: a rounding moves the exponential by so many units.

    An error of the scores may cancel in exact arithmetic, so that moving the inputs does not show it.
    """
    arrays = {name: np.nan_to_num(x) for name, x in inputs.items() if x.dtype.kind == "f"}
    masks = {name: x for name, x in inputs.items() if name.endswith("mask")}
    sizes = [np.abs(arrays[name]).max() for name in ("query_dual", "key_dual", "dual", "init") if name in arrays]
    if "scores" in arrays:
        sizes.append(np.abs(at_tokens(arrays["scores"], masks)).max())
    elif {"q", "k"} <= set(arrays) and operator in WITH_EXPONENTS:
        q, k = (keep_tokens(arrays[x[0]], masks.get(f"{x}_mask")) for x in ("query", "key"))
        if operator == "sliced_attention":  # of the soft sorts, and of the weights of slices
            radius = max(np.sqrt((x**2).sum(-1).max() / q.shape[-1]) for x in (q, k))
            sizes.append(4 * radius**2 / arguments["temperature"])
            sizes.append(2 * radius * arguments["inverse_temperature"] * q.shape[-2])
        else:
            sizes.append(np.abs(q @ k.mT).max() / math.sqrt(q.shape[-1]))
    if operator == "asap_attention":
        given = {name: inputs[name] for name in ("q", "k", "directions", "weights", "basis") if name in inputs}
        predicted = truth.PLAIN.amortized_query_dual(**given, **masks, cumulants=arguments["cumulants"])
        sizes.append(np.abs(predicted).max())
    return max(1.0, float(sum(sizes)) / arguments.get("epsilon", 1.0))


def at_tokens(scores, masks):
    """Scores with zero at padding."""
    valid = valid_pairs(masks.get("query_mask"), masks.get("key_mask"))
    return scores if valid is None else np.where(valid, scores, 0)


def rule(x):
    """How an array is compared, before its tolerance is known."""
    largest = float(np.abs(x).max(initial=0))
    return {"metric": "entries", "scale": largest or 1.0, "tolerance": dict.fromkeys(ROUNDOFF, math.inf)}


def zeros_of(recipe, inputs, outputs, gradients):
    """Where padding makes outputs and gradients exactly zero."""
    masks = {name: x for name, x in inputs.items() if name.endswith("mask")}
    in_axes, out_axes = recipe.axes()
    found = {}
    for prefix, arrays, axes in (("", outputs, out_axes), (GRADIENT, gradients, in_axes)):
        for name, x in arrays.items():
            where = padded(recipe, masks, axes[name].split())
            if where is not None and where.any():
                found[prefix + name] = np.broadcast_to(where, x.shape).copy()
    return found


def rounding_errors(case, seed, dtype):
    """What a careful computation in the dtype must be allowed, over the scale of each result.

    A few times what one rounding of every input, up or down, moves it, which any computation risks; in float32 also
    a few times the error of the plainest operators in float32, which know of cancellation on the way.
    """
    rng = np.random.default_rng([seed, 2])
    errors = {}

    def moved(x):
        return x * (1 + ROUNDOFF[dtype] * rng.choice([-1.0, 1.0], x.shape)) if x.dtype.kind == "f" else x

    def solved(inputs, weights):
        outputs = truth.outputs_of(case.operator, list(case.outputs), inputs, case.arguments)
        if not case.gradients:
            return outputs, None
        return outputs, truth.gradients_of(case.operator, inputs, case.arguments, weights)

    def note(outputs, gradients, times):
        for c in check(case, outputs, gradients=gradients, dtype=dtype, explain=False).comparisons:
            errors[c.name] = max(errors.get(c.name, 0.0), times * c.error)

    for _ in range(2 if dtype in ("float16", "bfloat16") else 1):
        inputs = {name: moved(x) for name, x in case.inputs.items()}
        note(*solved(inputs, [moved(c) for c in case.cotangents.values()]), ROUNDINGS)
    if dtype == "float32":
        short = {name: x.astype(dtype) if x.dtype.kind == "f" else x for name, x in case.inputs.items()}
        try:
            note(*solved(short, [c.astype(dtype) for c in case.cotangents.values()]), NAIVE)
        except FloatingPointError:  # it overflows: nothing can be asked
            errors = dict.fromkeys([*case.outputs, *(GRADIENT + name for name in case.gradients)], math.inf)
    return errors


# ---------------------------------------------------------------------------------------------------------- in words


def flags_of(recipe):
    """Flags of what is particular about a recipe, most particular first."""
    r, a = recipe, recipe.settings
    sorts = r.operator in ("kantorovich_potentials_1d", "sliced_potentials", "sliced_attention")
    masked = r.mask != "none" and r.operator != "attention_scores"
    axes = all_axes(r)
    rules = {
        "mask_per_head": masked and r.mask == "heads",
        "left_padding": masked and r.mask == "left",
        "mask_holes": masked and r.mask in ("holes", "heads", "empty", "one"),
        "fully_masked": masked and r.mask in ("empty", "all"),
        "one_mask": masked and r.side != "both",
        "nan_in_padding": masked and r.padding == "nan" and r.mask != "full",
        "padding": masked and r.mask != "full",
        "init": "init" in r.given,
        "weights": {"x_weights", "y_weights"} & set(r.given),
        "trapezoid": r.only == "slices",
        "slice_scale": r.only == "slices",
        "cumulants": r.operator == "cumulant_features" or r.only == "cumulants",
        "quadratic": (r.only in ("", "quadratic") and "basis" in r.given) or r.operator == "quadratic_features",
        "moments": r.operator == "moment_features",
        "head_directions": bool(set(OF_HEADS) & set(r.given)),
        "epsilon_scaling": a.get("epsilon", 1.0) != 1.0,
        "softmax_start": a.get("n_iter") == 0,
        "not_converged": a.get("n_iter", 0) > 0,
        "refine": a.get("refine", 0) > 0,
        "squared_cost_half": a.get("cost") == "sqeuclidean",
        "soft_sort": r.operator == "sliced_attention",
        "large_logits": r.values == "large",
        "rising_scores": r.values == "rising",
        "ties_in_sort": r.values in ("ties", "equal") and r.operator in TIED,
        "many_tokens": max(r.n, r.m) > 256,
        "tile_edges": max(r.n, r.m) > 16,
        "single_token": min(r.n, r.m) == 1,
        "common_levels": sorts and r.n != r.m and math.gcd(r.n, r.m) > 1,
        "unequal_lengths": r.n != r.m,
        "head_size": ("d" in axes and (r.d % 8 > 0 or r.d > 64)) or ("p" in axes and r.p % 8 > 0),
        "memory_layout": r.layout != LAYOUTS[0],
        "leading_axes": math.prod(r.leading) > 1,
        "full_mantissa": True,
        "half_gradients": has_gradients(r),
    }
    return [name for name, holds in rules.items() if holds]


def all_axes(recipe):
    """Names of the axes that any array of the problem has."""
    return " ".join(axis for each in recipe.axes() for axis in each.values()).split()


TIED = (
    "kantorovich_potentials_1d",
    "sliced_potentials",
    "dual_features",
    "amortized_query_dual",
    "asap_attention",
)


def describe(recipe):
    """A line for people."""
    r = recipe
    parts = [f"{r.n} x {r.m}"]
    if r.leading:
        parts.append("leading axes " + " x ".join(map(str, r.leading)))
    axes = all_axes(r)
    parts += [f"{name} {size}" for name, axis, size in (("d", "d", r.d), ("p", "p", r.p), ("slices", "l", r.n_slices))
              if axis in axes]  # fmt: skip
    if r.mask != "none" and r.operator != "attention_scores":
        side = "" if r.side == "both" else f" of {'queries' if r.side == 'query' else 'keys'} only"
        parts.append(f"mask {r.mask}{side}, {r.padding.replace('nan', 'NaN')} in padding")
    if r.values != "normal":
        parts.append(f"values {r.values}")
    parts += [f"with {name}" for name in r.given]
    if r.only:
        parts.append("all weights zero" if r.only == "none" else f"weights of the {r.only} alone")
    parts += [f"{k} {v}" for k, v in r.settings.items() if v != ARGUMENTS[r.operator][k]]
    if r.layout != LAYOUTS[0]:
        parts.append(f"{r.layout} in memory")
    return ", ".join(parts)
