"""Problems of any size from a seed: what a recipe says, and the arrays that it makes.

The numbers are drawn with all the digits of the dtype they are for: an implementation in float32 gets inputs of 24
bits, one in bfloat16 of 8, and the expected values belong to these very inputs.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from asap_ref.oracle import ties
from asap_ref.oracle.padding import PADDING, alive_of, masks_of, spoiled

# trailing axes of each array in and out; leading axes are batch and head
AXES = {
    "attention_scores": ({"q": "n d", "k": "m d"}, {"scores": "n m"}),
    "entropic_c_transform": ({"scores": "n m", "dual": "?"}, {"out": "?"}),  # by `onto`
    "lse": ({"q": "n d", "k": "m d", "query_dual": "n"}, {"key_dual": "m"}),
    "transport_plan": ({"scores": "n m", "query_dual": "n", "key_dual": "m"}, {"plan": "n m"}),
    "attend": ({"q": "n d", "k": "m d", "v": "m p", "key_dual": "m"}, {"out": "n p"}),
    "two_sided_c_transform": ({"scores": "n m", "query_dual": "n"}, {"query_dual": "n", "key_dual": "m"}),
    "marginal_error": ({"plan": "n m"}, {"row_error": "", "column_error": ""}),
    "sinkhorn": ({"scores": "n m", "init": "n"}, {"query_dual": "n", "key_dual": "m"}),
    "kantorovich_potentials_1d": (
        {"x": "n", "y": "m", "x_weights": "n", "y_weights": "m"},
        {"phi": "n", "psi": "m"},
    ),
    "sliced_potentials": ({"q": "n d", "k": "m d", "directions": "d l"}, {"phi": "l n", "psi": "l m"}),
    "cumulant_features": ({"q": "n d", "k": "m d"}, {"features": "f n"}),
    "quadratic_features": ({"q": "n d", "k": "m d", "basis": "d r"}, {"features": "f n"}),
    "moment_features": ({"q": "n d", "k": "m d", "basis": "d r"}, {"features": "f n"}),
    "dual_features": ({"q": "n d", "k": "m d", "directions": "d l", "basis": "d r"}, {"features": "f n"}),
    "amortized_query_dual": (
        {"q": "n d", "k": "m d", "directions": "d l", "weights": "h f", "basis": "d r"},
        {"query_dual": "n"},
    ),
    "softmax_attention": ({"q": "n d", "k": "m d", "v": "m p"}, {"out": "n p"}),
    "sinkhorn_attention": ({"q": "n d", "k": "m d", "v": "m p"}, {"out": "n p"}),
    "sliced_attention": ({"q": "n d", "k": "m d", "v": "m p", "directions": "d l"}, {"out": "n p"}),
    "asap_attention": (
        {"q": "n d", "k": "m d", "v": "m p", "directions": "d l", "weights": "h f", "basis": "d r"},
        {"out": "n p"},
    ),
    "kl_loss": ({"scores": "n m", "query_dual": "n", "teacher_columns": "m"}, {"loss": ""}),
    "dual_loss": ({"scores": "n m", "query_dual": "n"}, {"loss": ""}),
}
ARGUMENTS = {  # of a recipe that does not say
    "entropic_c_transform": {"onto": "key", "epsilon": 1.0},
    "lse": {"epsilon": 1.0},
    "transport_plan": {"epsilon": 1.0},
    "attend": {"epsilon": 1.0},
    "two_sided_c_transform": {"epsilon": 1.0},
    "sinkhorn": {"n_iter": 3, "epsilon": 1.0},
    "kantorovich_potentials_1d": {"cost": "bilinear"},
    "dual_features": {"cumulants": True},
    "amortized_query_dual": {"cumulants": True},
    "sinkhorn_attention": {"n_iter": 3, "epsilon": 1.0},
    "sliced_attention": {"temperature": 0.125, "inverse_temperature": 0.5, "hard": False},
    "asap_attention": {"cumulants": True, "epsilon": 1.0, "refine": 0},
    "kl_loss": {"epsilon": 1.0},
    "dual_loss": {"epsilon": 1.0},
}
OPTIONAL = {  # what a recipe may give besides
    "sinkhorn": ("init",),
    "kantorovich_potentials_1d": ("x_weights", "y_weights"),
    "sliced_attention": ("directions",),
    "quadratic_features": ("head_basis",),
    "moment_features": ("head_basis",),
    "dual_features": ("basis",),
    "amortized_query_dual": ("basis", "head_directions"),
    "asap_attention": ("basis", "head_directions"),
}
MASKS = ("none", "full", "prefix", "left", "holes", "heads", "one", "empty", "all")
SIDES = ("both", "query", "key")
VALUES = ("normal", "large", "rising", "equal", "ties")
LAYOUTS = ("contiguous", "transposed", "interleaved")
OF_HEADS = ("head_directions", "head_basis")  # no arrays: directions, or a basis, for each head
WITH_HEADS = ("quadratic_features", "moment_features", "amortized_query_dual", "asap_attention")
WITH_WEIGHTS = ("amortized_query_dual", "asap_attention")
FAMILIES = ("slices", "cumulants", "quadratic")  # of features, in their order
SORTED = ("kantorovich_potentials_1d", "sliced_potentials", "dual_features", "amortized_query_dual", "asap_attention",
          "sliced_attention")  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A problem before its numbers are drawn.

    mask
        "full": given, but nothing is masked; "prefix": the first tokens are valid, a number for each sequence; "left":
        the last ones; "holes": any; "heads": others for each head; "one": a single token; "empty": the last sequence
        has none; "all": none has.
    side
        Which masks are given.
    padding
        What padding holds: 100 or NaN.
    values
        "large": scores in the hundreds; "rising": along both axes, so that a running maximum changes all the time;
        "equal": all alike; "ties": many samples are equal.
    only
        A family of features, whose weights alone are not zero; "none": all weights are zero.
    """

    operator: str
    n: int = 33
    m: int = 35
    d: int = 8
    p: int = 5
    batch: int = 2  # 0: no such axis
    heads: int = 2
    n_slices: int = 3
    rank: int = 2
    mask: str = "none"
    side: str = "both"
    padding: str = "nan"
    values: str = "normal"
    layout: str = "contiguous"
    only: str = ""
    given: tuple = ()  # optional arrays
    arguments: dict = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self):
        known = {"operator": AXES, "mask": MASKS, "side": SIDES, "values": VALUES, "layout": LAYOUTS,
                 "padding": ("100", "nan"), "only": ("", "none", *FAMILIES)}  # fmt: skip
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                told = ", ".join(choices)
                raise ValueError(f"oracle: {name} must be one of {told}, got {getattr(self, name)!r}")
        for name in ("n", "m", "d", "p", "n_slices", "rank"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"oracle: {name} must be an integer of at least 1, got {getattr(self, name)!r}")
        unknown = set(self.given) - set(OPTIONAL.get(self.operator, ()))
        if unknown:
            may = ", ".join(OPTIONAL.get(self.operator, ())) or "none"
            raise ValueError(f"oracle: {self.operator} has no optional {', '.join(sorted(unknown))}; it has {may}")
        wrong = set(self.arguments) - set(ARGUMENTS.get(self.operator, {}))
        if wrong:
            has = ", ".join(ARGUMENTS.get(self.operator, {})) or "none"
            raise ValueError(f"oracle: {self.operator} has no argument {', '.join(sorted(wrong))}; it has {has}")

    @classmethod
    def read(cls, entry):
        """Make a recipe from what the manifest says."""
        return cls(**{**entry, "given": tuple(entry.get("given", ()))})

    def written(self):
        """Return what the manifest says: the operator, and whatever is not the default."""
        default = asdict(Recipe(self.operator))
        said = {name: x for name, x in asdict(self).items() if name == "operator" or x != default[name]}
        return {name: list(x) if isinstance(x, tuple) else x for name, x in said.items()}

    @property
    def settings(self):
        """Arguments by keyword."""
        return {**ARGUMENTS.get(self.operator, {}), **self.arguments}

    @property
    def leading(self):
        """Sizes of the leading axes."""
        heads = max(self.heads, 1) if self.operator in WITH_HEADS else self.heads
        return tuple(size for size in (self.batch, heads) if size)

    def axes(self):
        """Trailing axes of inputs and outputs."""
        inputs, outputs = AXES[self.operator]
        if self.operator == "entropic_c_transform":
            known, other = ("n", "m") if self.settings["onto"] == "key" else ("m", "n")
            return {**inputs, "dual": known}, {"out": other}
        return inputs, outputs

    def smaller(self, **changes):
        """Return the recipe with some changes."""
        return replace(self, **changes)


# ------------------------------------------------------------------------------------------------------- the numbers


def arrays_of(recipe, dtype):
    """Input arrays by name, in the order of the operator, with the digits of the dtype; float64 or boolean."""
    rng = np.random.default_rng([recipe.seed, zlib.crc32(recipe.operator.encode())])
    masks = masks_of(recipe, rng)
    alive = dict(zip("nm", alive_of(recipe, masks), strict=True))
    inputs, _ = recipe.axes()
    optional = OPTIONAL.get(recipe.operator, ())
    made = {}
    for name in inputs:
        if name not in optional or name in recipe.given:
            x = rounded(_numbers(recipe, name, inputs[name], rng, made), dtype)
            if name in ("x", "y") and recipe.values != "ties":
                x = ties.distinct(x, lambda size: rounded(2 * rng.standard_normal(size), dtype))
            made[name] = spoiled(recipe, name, x, inputs[name].split(), masks)
    for side in "xy":
        if f"{side}_weights" in made:
            redrawn = lambda size: rounded(rng.uniform(0.25, 2.0, size), dtype)  # noqa: E731
            ties.keep_levels_apart(made, side, alive["n"], alive["m"], redrawn)
    if "teacher_columns" in made:
        made["teacher_columns"] = rounded(_columns(made["teacher_columns"], alive["n"], alive["m"]), dtype)
    return made | masks


def _columns(x, queries, keys):
    """Column sums of a plan: they sum to n' exactly, being multiples of 1/4096, and are zero at padding."""
    x = np.where(keys, x, 0)
    n = queries.sum(-1, keepdims=True)
    x = np.round(x / np.maximum(x.sum(-1, keepdims=True), 1e-30) * n * 4096) / 4096
    first = np.arange(x.shape[-1]) == keys.argmax(-1)[..., None]
    return x + np.where(first & keys, n - x.sum(-1, keepdims=True), 0)


def _numbers(recipe, name, axes, rng, made):
    sizes = {"n": recipe.n, "m": recipe.m, "d": recipe.d, "p": recipe.p, "l": recipe.n_slices, "r": recipe.rank}
    leading = recipe.leading
    if name == "directions":
        own = (leading[-1],) if "head_directions" in recipe.given else ()
        return unit_columns(rng, *own, recipe.d, recipe.n_slices)
    if name == "basis":
        own = (leading[-1],) if "head_basis" in recipe.given else ()
        return unit_columns(rng, *own, recipe.d, recipe.rank)
    if name == "weights":
        return rng.standard_normal((leading[-1], sum(count_features(recipe)))) / 4 * weighed(recipe)
    shape = (*leading, *(sizes[axis] for axis in axes.split()))
    x = rng.standard_normal(shape)
    if name in ("x", "y"):
        return np.round(2 * x) / 2 if recipe.values == "ties" else 2 * x
    if name in ("x_weights", "y_weights", "teacher_columns"):
        return rng.uniform(0.25, 2.0, shape)
    if name == "plan":
        return np.abs(x) / recipe.m
    if recipe.operator == "transport_plan" and name != "scores":  # duals that balance the scores, nearly
        unseen = np.isnan(made["scores"]) | (made["scores"] == PADDING)
        top = np.where(unseen, -np.inf, made["scores"]).max(-1)
        return x / 2 - (1 + np.where(np.isfinite(top), top, 0) if name == "query_dual" else 0)
    if name == "v" or name not in ("q", "k", "scores"):
        return x * {"large": 20.0}.get(recipe.values, 1.0) if name != "v" else x
    x = x * {"large": 6.0, "equal": 0.0}.get(recipe.values, 1.0) * (2 if name == "scores" else 1)
    if name == "scores" and recipe.values == "large":
        x = 6 * x
    if recipe.values == "ties" and recipe.operator in SORTED:
        x = np.round(x)
    if recipe.values == "rising":
        climb = {"q": recipe.n, "k": recipe.m}
        if name in climb:  # the scores of their first coordinates rise along queries and along keys
            x[..., 0] = math.sqrt(recipe.d) * (2 + np.linspace(0, 3, climb[name]) + 0 * x[..., 0] / 8)
        else:
            x = x + np.linspace(0, 12, recipe.n)[:, None] + np.linspace(0, 24, recipe.m)
    return x


def unit_columns(rng, *shape):
    """Columns of length one, (..., d, L), orthogonal within each block of d."""
    *leading, d, n = shape
    blocks = [np.linalg.qr(rng.standard_normal((*leading, d, d)))[0] for _ in range(-(-n // d))]
    return np.concatenate(blocks, axis=-1)[..., :n]


def count_features(recipe):
    """How many features the slices, the cumulants and a basis give."""
    r = recipe.rank if "basis" in recipe.given else 0
    return recipe.n_slices, 3 if recipe.settings["cumulants"] else 0, r + r * (r + 1) // 2 + r * r


def weighed(recipe):
    """(F,) 1 at the features whose weights are not zero."""
    return np.repeat([float(recipe.only in ("", family)) for family in FAMILIES], count_features(recipe))


def rounded(x, dtype):
    """Round float64 to the digits of a dtype, and keep it as float64."""
    if dtype == "bfloat16":  # a float32 without its last 16 bits, to nearest, ties to even
        bits = x.astype(np.float32).view(np.uint32)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return np.where(np.isfinite(x), bits.view(np.float32).astype(np.float64), x)
    return x.astype(dtype).astype(np.float64)
