"""The smallest case that still fails, at which sizes that flips, and which family of features it takes."""

from __future__ import annotations

import time

from asap_ref.oracle.adapter import load_module, run_case, why_not
from asap_ref.oracle.drawn import DrawnCase, all_axes, describe, flags_of
from asap_ref.oracle.recipe import FAMILIES, WITH_WEIGHTS, Recipe
from asap_ref.oracle.stored import flags

SIZES = ("n", "m", "batch", "heads", "d", "p", "n_slices", "rank")
TOKENS = {"m": "keys", "n": "queries"}
WIDTHS = {"d": "d", "p": "p"}
OF_NOTE = 3  # from which size on a flip tells something: almost everything is right of one token


def shrink(module, case, *, dtype="float64", tries=150, seconds=20.0):
    """Return the smallest case that still fails, found by dropping options and sizes one after the other.

    Sizes are tried from 1 upwards, so that what comes out is where a failure begins: 33 if tiles of 32 are at fault.
    Then its own are tried at both sides, and its note says where the result flips; its flags are those that it takes.
    """
    module, until = load_module(module), time.monotonic() + seconds
    best = case.recipe
    left = [tries]

    def fails(recipe):
        if left[0] <= 0 or time.monotonic() > until:
            return False
        left[0] -= 1
        return _fails(module, recipe, dtype)

    def attempt(**changes):
        nonlocal best
        try:
            smaller = best.smaller(**changes)
        except ValueError:
            return False
        if smaller != best and fails(smaller):
            best = smaller
            return True
        return False

    for changes in (
        {"layout": "contiguous"},
        {"mask": "none"},
        {"side": "both"},
        {"padding": "100"},
        {"values": "normal"},
        {"batch": 0},
        {"heads": 0},
        {"batch": 1},
        {"heads": 1},
    ):
        attempt(**changes)
    for name in best.given:
        attempt(given=tuple(other for other in best.given if other != name))
    for name in best.arguments:
        attempt(arguments={key: x for key, x in best.arguments.items() if key != name})
    if best.operator in WITH_WEIGHTS:
        any(attempt(only=only) for only in ("none", *families(best)))
    for _ in range(2):  # one size may allow another to become smaller
        for size in SIZES:
            _smallest(size, attempt, lambda: best)
    return explained(module, best, dtype)


def _fails(module, recipe, dtype):
    case = DrawnCase.of(recipe)
    return not why_not(case, dtype) and not run_case(module, case, dtype=dtype, explain=False).passed


def _smallest(size, attempt, current):
    """Make one size as small as it goes: halve the gap between what passes and what fails, then step down."""
    high, low = getattr(current(), size), 0 if size in ("batch", "heads") else 1
    if high <= low or attempt(**{size: low}):
        return
    while high - low > 1:  # low passes, high fails
        middle = (low + high) // 2
        if attempt(**{size: middle}):
            high = middle
        else:
            low = middle
    # not all failures are monotone: 33 fails and 64 does not
    for smaller in (size_ for size_ in (2, 3, 5, 17, 33, 65) if size_ < getattr(current(), size)):
        if attempt(**{size: smaller}):
            return


# ----------------------------------------------------------------------------------------------------- what it takes


def explained(module, recipe, dtype):
    """The case of a shrunk recipe, whose note says where the result flips; flags that it does not need are left out."""

    def fails(**changes):
        return _fails(module, recipe.smaller(**changes), dtype)

    told = list(flips(recipe, fails))
    needed = {flag for flag, _ in told}
    at_once = {  # flags that hold of a shrunk case by chance: whether it fails without them, too
        "unequal_lengths": lambda: fails(n=max(recipe.n, recipe.m), m=max(recipe.n, recipe.m)),
        "head_size": lambda: fails(d=8, p=8),
        "tile_edges": lambda: fails(n=min(recipe.n, 16), m=min(recipe.m, 16)),
    }
    holding = flags_of(recipe)
    idle = {flag for flag, without in at_once.items() if flag in holding and flag not in needed and without()}
    names = [*dict.fromkeys([*(flag for flag, _ in told), *(flag for flag in holding if flag not in idle)])]
    return DrawnCase.of(
        recipe,
        note="; ".join([*(sentence for _, sentence in told), describe(recipe)]),
        flags=tuple(names),
        hint="\n".join(f"{name}: {flags()[name]}" for name in names),
    )


def flips(recipe, fails):
    """(flag, sentence) of each size at which the result changes: "fails from 33 keys on, not at 32" names a tile."""
    axes = {"n", "m", *all_axes(recipe)}
    for size, what in ({**TOKENS, **WIDTHS}).items():
        at = getattr(recipe, size)
        if size not in axes or at < OF_NOTE or fails(**{size: at - 1}):
            continue
        beyond = [at + 1, 2 * (at - 1), 2 * at - 1, 4 * (at - 1)]
        passes = [str(other) for other in beyond if not fails(**{size: other})]
        flag = "tile_edges" if size in TOKENS else "head_size"
        count = f"{at} {what}" if size in TOKENS else f"{what} = {at}"
        if passes:
            yield flag, f"fails at {count}, not at {', '.join([str(at - 1), *passes])}"
        else:
            yield flag, f"fails from {count} on, not at {at - 1}"


def families(recipe):
    """Families of features that a recipe has."""
    has = {"cumulants": recipe.settings["cumulants"], "quadratic": "basis" in recipe.given}
    return [family for family in FAMILIES if has.get(family, True)]


def failing_family(module, operator, dtype):
    """Say which family of features it takes for an operator to fail, by weights that are zero for the others."""
    if operator not in WITH_WEIGHTS:
        return ""
    whole = Recipe(operator, n=17, m=19, given=("basis",))
    if not _fails(module, whole, dtype):
        return ""
    if _fails(module, whole.smaller(only="none"), dtype):
        return "with all weights of features zero it fails as well: the prediction is not at fault, or not alone"
    wrong = [family for family in FAMILIES if _fails(module, whole.smaller(only=family), dtype)]
    told = (
        f"with the weights of {' or '.join(wrong)} alone it fails, with"
        if wrong
        else "only together features fail; with"
    )
    return f"{told} all weights zero it passes: look at {' and '.join(wrong) or 'how features are put together'}"
