"""Masks of every kind, and what lies at padding: part of what a recipe says."""

from __future__ import annotations

import numpy as np

UNMASKED = ("attention_scores",)
PADDING = 100.0


def masks_of(recipe, rng):
    """Boolean masks by the names that the operator has for them."""
    if recipe.mask == "none" or recipe.operator in UNMASKED:
        return {}
    names = ("x_mask", "y_mask") if recipe.operator == "kantorovich_potentials_1d" else ("query_mask", "key_mask")
    made = {name: mask(recipe, size, rng) for name, size in zip(names, (recipe.n, recipe.m), strict=True)}
    if recipe.side != "both":
        made = {name: x for name, x in made.items() if name == names[recipe.side == "key"]}
    return made


def mask(recipe, size, rng):
    """One mask (..., size), with 1 in place of the heads unless these differ."""
    leading = recipe.leading
    if recipe.heads and recipe.mask != "heads" and len(leading) == 2:
        leading = (*leading[:-1], 1)
    valid = np.ones((*leading, size), bool)
    place = np.arange(size)
    last = np.ndindex(leading)
    for number, index in enumerate(last):
        if recipe.mask in ("prefix", "left"):
            # a first or last tile of 32 wholly masked where there is room, else at least one token
            length = (size, max(size - 33, size // 3, 1), max(size // 2, 1))[(number + 1) % 3]
            valid[index] = place < length if recipe.mask == "prefix" else place >= size - length
        elif recipe.mask in ("holes", "heads", "empty"):
            valid[index] = rng.random(size) < 0.6
            valid[index][rng.integers(size)] = True
            if size > 2:
                valid[index][0] = False if number % 2 == 0 else valid[index][0]
                valid[index][rng.integers(1, size)] = True
        elif recipe.mask == "one":
            valid[index] = place == rng.integers(size)
    if recipe.mask == "all":
        valid[...] = False
    if recipe.mask == "empty":
        valid.reshape(-1, size)[-1] = False
    return valid


def alive_of(recipe, masks):
    """Valid queries (..., n) and keys (..., m) with all leading axes; a side without any takes the other with it."""
    found = []
    for names, size in ((("query_mask", "x_mask"), recipe.n), (("key_mask", "y_mask"), recipe.m)):
        given = next((masks[name] for name in names if name in masks), True)
        found.append(np.broadcast_to(given, (*recipe.leading, size)))
    queries, keys = found
    return queries & keys.any(-1, keepdims=True), keys & queries.any(-1, keepdims=True)


def padded(recipe, masks, axes):
    """Where an array with those trailing axes is padding: boolean, or None where it has no token axis."""
    sides = {axis: x for axis, x in zip("nm", alive_of(recipe, masks), strict=True) if axis in axes}
    if not masks or not sides:
        return None
    where = False
    for axis, valid in sides.items():
        after = len(axes) - 1 - axes.index(axis)
        before = axes.index(axis)
        lead = valid.shape[:-1]
        where = where | ~valid.reshape(*lead, *(1,) * before, valid.shape[-1], *(1,) * after)
    return where


def spoiled(recipe, name, x, axes, masks):
    """Padding filled with what nothing may see."""
    if name in ("plan", "teacher_columns"):  # a plan is zero at padding
        where = padded(recipe, masks, axes)
        return x if where is None else np.where(where, 0.0, x)
    sides = {"n": ("query_mask", "x_mask"), "m": ("key_mask", "y_mask")}
    where = False
    for position, axis in enumerate(axes):
        for side in sides.get(axis, ()):
            if side in masks:
                lead = masks[side].shape[:-1]
                after = len(axes) - 1 - position
                where = where | ~masks[side].reshape(*lead, *(1,) * position, masks[side].shape[-1], *(1,) * after)
    return np.where(where, np.nan if recipe.padding == "nan" else PADDING, x)
