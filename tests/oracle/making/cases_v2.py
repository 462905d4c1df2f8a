"""What the second version asks: small problems that are stored, and large ones that are drawn from a seed.

Small ones hold every kind of mask, one mask without the other, NaN in padding, every optional argument beside
masks, and all 24 digits of float32. Large ones cross the tiles of a kernel. A line is (name, note, changes).
"""

from __future__ import annotations

import zlib

from cases_v1 import Spec

from asap_ref.oracle.drawn import describe, flags_of
from asap_ref.oracle.padding import UNMASKED
from asap_ref.oracle.recipe import AXES, OPTIONAL, Recipe, arrays_of

SMALL = dict(n=6, m=4, d=5, p=3, batch=2, heads=2, n_slices=2, rank=2)
SLOW = ("asap_attention", "sliced_attention", "dual_features", "amortized_query_dual")  # at 50 digits
OTHER = {  # arguments that differ from the defaults, for the cases that say so
    "entropic_c_transform": {"onto": "query", "epsilon": 0.75},
    "lse": {"epsilon": 0.75},
    "transport_plan": {"epsilon": 0.75},
    "attend": {"epsilon": 0.75},
    "two_sided_c_transform": {"epsilon": 0.75},
    "sinkhorn": {"n_iter": 2, "epsilon": 0.75},
    "kantorovich_potentials_1d": {"cost": "sqeuclidean"},
    "dual_features": {"cumulants": False},
    "amortized_query_dual": {"cumulants": False},
    "sinkhorn_attention": {"n_iter": 2, "epsilon": 0.75},
    "sliced_attention": {"hard": True},
    "asap_attention": {"epsilon": 0.75, "refine": 1},
    "kl_loss": {"epsilon": 0.75},
    "dual_loss": {"epsilon": 0.75},
}
ALL, SOME = "all", "other"  # optional arrays: all of them, and with other arguments

LARGE = dict(n=33, m=35, d=8)  # of a recipe that does not say
STORED = [
    ("all_digits", {}, ALL),
    ("left_padding", dict(mask="left"), ALL),
    ("holes_in_keys", dict(mask="holes", side="key"), SOME),
    ("holes_in_queries", dict(mask="holes", side="query"), ALL + SOME),
    ("mask_per_head", dict(mask="heads", n=5, m=5), SOME),
    ("an_empty_sequence", dict(mask="empty", padding="100"), ALL),
    ("one_query", dict(n=1, m=5), SOME),
    ("one_key", dict(n=5, m=1, mask="one"), ""),
]
DRAWN = [
    ("tiles", dict(n=129, m=65, d=40, p=24, batch=1, heads=2), ALL),
    ("tiles_rising", dict(n=70, m=133, d=16, p=16, values="rising", batch=1), SOME),
    ("tiles_left_padding", dict(n=97, m=130, d=16, p=7, mask="left", batch=3, heads=1), ALL),
    ("tiles_holes_in_keys", dict(n=65, m=96, mask="holes", side="key", values="rising"), ALL + SOME),
    ("tiles_mask_per_head", dict(n=33, m=64, d=33, p=33, mask="heads"), SOME),
    ("tiles_prefix_of_queries", dict(n=128, m=31, mask="prefix", side="query", batch=3, heads=1), ""),
    ("tiles_empty", dict(n=34, m=48, mask="empty"), SOME),
    ("one_by_many", dict(n=1, m=129), ""),
    ("many_by_one", dict(n=257, m=1, heads=1), SOME),
    ("many_queries", dict(n=1030, m=6, batch=1, heads=1, n_slices=2), ""),
    ("many_keys", dict(n=5, m=770, batch=1, heads=1, n_slices=2, mask="holes"), ""),
    ("large_scores", dict(n=40, m=33, values="large"), ""),
    ("equal_scores", dict(n=35, m=35, values="equal"), ""),
    ("views_interleaved", dict(n=18, m=20, mask="holes", layout="interleaved"), ALL),
    ("views_transposed", dict(n=20, m=18, layout="transposed"), SOME),
]
LEVELS = [  # sorted operators: levels i/n and j/m that coincide, and ties
    ("common_levels", dict(n=60, m=96, batch=2, heads=0, n_slices=2), ""),
    ("common_levels_of_many", dict(n=300, m=200, batch=1, heads=0, n_slices=1), ""),
    ("common_levels_of_what_is_valid", dict(n=90, m=60, mask="left", batch=3, heads=0, n_slices=1), ""),
    ("ties", dict(n=50, m=70, values="ties", batch=1, heads=0, n_slices=1), ""),
]
CLOUDS = [  # sequences of points of the plane, as the tokens of two clouds
    ("clouds", dict(n=200, m=150, d=2, heads=1, mask="prefix", n_slices=3), ALL),
    ("clouds_of_one_point_more", dict(n=65, m=64, d=2, batch=1, values="rising"), ""),
]
RISING = [("many_keys_rising", dict(n=7, m=610, d=16, values="rising", batch=1, heads=1), "")]  # past tiles of 512
OF_TILES = ("lse", "attend", "softmax_attention", "sinkhorn_attention", "asap_attention")
REFINED = [  # one iteration more or less shows only where there are several, and the duals are far from converged
    (f"refined_{times}_times", dict(n=17, m=24, batch=1, values="large"), {"refine": times, "epsilon": 8.0})
    for times in (2, 3)
]
OF_CLOUDS = ("sliced_potentials", "cumulant_features", "quadratic_features", "moment_features", "dual_features",
             "amortized_query_dual", "asap_attention")  # fmt: skip
WITH_LEVELS = ("kantorovich_potentials_1d", "sliced_potentials", "sliced_attention")


def recipe(operator, name, changes, say, **sizes):
    masked = "mask" in changes
    if masked and operator in UNMASKED:
        return None
    changes = dict(changes)
    if operator == "marginal_error" and changes.get("padding") is None and masked:
        changes["padding"] = "100"  # a plan is zero at padding
    arguments = say if isinstance(say, dict) else OTHER.get(operator, {}) if say.endswith(SOME) else {}
    given = OPTIONAL.get(operator, ()) if ALL in say else ()
    if operator == "sliced_attention" and changes.get("values") in ("ties", "equal"):
        return None  # equal samples have no one order there
    if operator == "sliced_attention":  # a tensor n x m for each slice, and those are the coordinates
        many = {"n": 66, "m": 66, "d": 4}
        sizes = sizes | {axis: min(most, {**LARGE, **sizes, **changes}[axis]) for axis, most in many.items()}
        changes = {key: x for key, x in changes.items() if key not in many}
        if name.startswith("many"):
            return None
    seed = zlib.crc32(f"{operator}/{name}".encode()) % 1000
    return Recipe(operator, **{**sizes, **changes}, given=given, arguments=arguments, seed=seed)


def stored_specs():
    """Specs of the small cases, each with its recipe."""
    found = []
    for operator in AXES:
        small = SMALL | (dict(n=4, m=3, d=3, batch=2, heads=1) if operator in SLOW else {})
        for name, changes, say in STORED:
            made = recipe(operator, name, changes, say, **small)
            if made is None or (operator == "marginal_error" and name == "mask_per_head"):
                continue
            inputs = arrays_of(made, "float32")
            flags = [*(["plain"] if name == "all_digits" else []), *flags_of(made)]
            found.append(
                (Spec(f"{operator}/{name}", describe(made), " ".join(flags), inputs, made.settings), made)
            )
    return found


def drawn_recipes():
    """(id, recipe) of the large cases."""
    found = []
    for operator in AXES:
        more = (LEVELS if operator in WITH_LEVELS else []) + (CLOUDS if operator in OF_CLOUDS else [])
        more += RISING if operator in OF_TILES else []
        more += REFINED if operator == "asap_attention" else []
        for name, changes, say in DRAWN + more:
            made = recipe(operator, name, changes, say)
            if made is not None:
                found.append((f"{operator}/{name}", made))
    return found
