"""Duals and potentials up to the constant that is free: (f + t, g - t) is the same plan.

``rules["gauge"]`` is [[output, sign], ...]. The first output is made to agree in its mean, problem by problem, and
the others are moved with it by their sign.
"""

from __future__ import annotations

import dataclasses

import numpy as np

BY_ITSELF = "each is right up to a constant, but the constants do not cancel: only (f + t, g - t) is the same plan"


def judged(case, found, compare):
    """Compare the outputs, ``compare(name, found, expected, rule)``; return the comparisons in order.

    If together they are wrong, each is judged by itself as well, so that a right one is not called wrong for the
    constant of a wrong one.
    """

    def all_of(arrays):
        rules = case.rules["outputs"]
        return {name: compare(name, arrays.get(name), y, rules[name]) for name, y in case.outputs.items()}

    free = [name for name, _ in case.rules["gauge"] if comparable(case, found, name)]
    together = all_of(moved(case, found, free))
    wrong = [name for name in free if together[name].status == "wrong"]
    if wrong:
        alone = all_of({**found, **{name: moved(case, found, [name])[name] for name in free}})
        culprits = [name for name in free if alone[name].status == "wrong"]
        if culprits:
            together |= {name: alone[name] for name in free}
        elif len(free) > 1:
            together |= {
                name: dataclasses.replace(together[name], remarks=(BY_ITSELF, *together[name].remarks))
                for name in wrong
            }
    return list(together.values())


def comparable(case, found, name):
    """Whether an output is there, in the right shape."""
    return name in found and found[name].shape == case.outputs[name].shape


@np.errstate(all="ignore")  # infinities are reported, not warned of
def moved(case, found, names):
    """Take from the outputs named what makes the first of them agree in its mean."""
    if not names:
        return found
    signs = dict(case.rules["gauge"])
    first = names[0]

    def padding(name):
        return case.must_be_zero.get(name, np.zeros(found[name].shape, bool))

    valid = ~padding(first)
    difference = np.where(valid, found[first] - case.outputs[first], 0.0)
    shift = difference.sum(-1, keepdims=True) / np.maximum(valid.sum(-1, keepdims=True), 1)
    return found | {
        name: np.where(padding(name), found[name], found[name] - signs[name] * signs[first] * shift)
        for name in names
    }
