"""Fresh cases of any size, one or a minute of them: `random_case`, `fuzz`."""

from __future__ import annotations

import itertools
import math
import time
import zlib
from dataclasses import dataclass

import numpy as np

from asap_ref.oracle.adapter import resolved, run_case, why_not
from asap_ref.oracle.contract import misfit
from asap_ref.oracle.drawn import DrawnCase
from asap_ref.oracle.module_report import ModuleReport
from asap_ref.oracle.padding import UNMASKED
from asap_ref.oracle.recipe import ARGUMENTS, AXES, MASKS, OPTIONAL, SIDES, Recipe
from asap_ref.oracle.shrinking import SIZES, shrink
from asap_ref.oracle.suspects import ranked, ranked_by_smallest

EDGES = (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257)


def random_case(operator, **said):
    """Draw a case of any size from a seed, with expected values and tolerances.

    Parameters
    ----------
    operator : str
    **said
        Fields of `asap_ref.oracle.recipe.Recipe`: n, m, d, p, batch, heads, mask, side, padding, values, layout, given,
        arguments, seed, ...

    Returns
    -------
    Case
        For float64; ``case.at("float32")`` draws the numbers, and what comes of them, for another dtype.

    Raises
    ------
    ValueError
        If the operator is not drawn, or a field is none of those that there are.

    Examples
    --------
    >>> from asap_ref import oracle
    >>> case = oracle.random_case("sinkhorn", n=129, m=257, mask="left", seed=3)
    >>> case.inputs["scores"].shape
    (2, 2, 129, 257)
    >>> oracle.run_case(oracle.reference, case).passed
    True
    """
    try:
        return DrawnCase.of(Recipe(operator, **said))
    except TypeError:
        unknown = sorted(set(said) - set(Recipe.__dataclass_fields__))
        raise ValueError(
            f"random_case: nothing is called {', '.join(unknown)}; there are {', '.join(Recipe.__dataclass_fields__)}"
        ) from None


# ------------------------------------------------------------------------------------------------------------ fuzzing


@dataclass(frozen=True)
class FuzzReport(ModuleReport):
    """What a minute of drawn cases showed: as a `ModuleReport`, with the smallest failing case of each operator."""

    smallest: tuple = ()  # (report, case as it was met) of each operator that fails
    drawn: int = 0

    def suspects(self):
        """Flags that explain the smallest failing case of the lowest failing operator, best first."""
        first = self.first_operator()
        found = [report for report, _ in self.smallest if report.case.operator == first and not report.passed]
        mine = [report for report in self.reports if report.case.operator == first]
        return ranked_by_smallest(mine, found[0]) if found else ranked(mine)

    def __str__(self):
        lines = []
        for report, met in self.smallest:
            lines += [str(report), f"  smallest that fails; met as {met.note}", f"  again: {again(report)}"]
        kinds = len({report.case.operator for report in self.reports})
        lines.append(
            f"{self.name}: {self.drawn} cases of {kinds} operators drawn, {len(self.smallest)} operators fail"
        )
        if self.failed:
            lines.append(f"begin with {self.first_operator()}: {', '.join(self.suspects()[:3])}")
            lines += self.features_lines()
        return "\n".join(lines)


def again(report):
    """The command that draws the case of a report again."""
    r = report.case.recipe
    default = Recipe(r.operator)
    words = [f"asap-ref oracle random {r.operator} MODULE --dtype {report.dtype}"]
    for name in (*SIZES, "mask", "side", "padding", "values", "layout", "only", "seed"):
        if getattr(r, name) != getattr(default, name):
            words.append(f"--{name.replace('_', '-')} {getattr(r, name)}")
    words += [f"--give {name}" for name in r.given]
    words += [f"--set {key}={x}" for key, x in r.arguments.items()]
    return " ".join(words)


def fuzz(module, *, seconds=60.0, rounds=None, operator=None, dtype="float64", seed=0, tile=None, on_report=None):
    """Draw cases for a time or a number of rounds, edges first, and shrink what fails.

    The cases of a seed are the same on every machine and for every module, whichever operators it has; only how many
    a time allows for depends on the machine. In tests, say ``rounds``.

    Parameters
    ----------
    module : module, or its name, or the path of a .py file
    seconds : float
        How long; each operator is drawn at least once.
    rounds : int, optional
        How many cases of each operator, however long they take, in place of a time.
    operator : str, optional
        Only this one.
    dtype : str
    seed : int
        Another one draws other cases.
    tile : int, optional
        Size of a kernel's tiles: sizes are then this, one less, one more, and twice it and one more. Without it 600 is
        the largest.
    on_report : callable, optional
        Told ``(number done, None, report)`` after each case.

    Returns
    -------
    FuzzReport

    Examples
    --------
    >>> from asap_ref import oracle
    >>> oracle.fuzz(oracle.reference, rounds=3, operator="lse", seed=1).passed
    True
    """
    module, remark = resolved(module)
    known = [name for name in AXES if operator in (None, name)]
    names = [name for name in known if callable(getattr(module, name, None))]
    if not names:
        raise ValueError(f"{module.__name__} offers none of {', '.join(known)}")
    if rounds is not None and rounds < 1:
        raise ValueError(f"fuzz: rounds must be at least 1, got {rounds}")
    if tile is not None and tile < 2:
        raise ValueError(f"fuzz: tile must be at least 2, got {tile}")
    until = math.inf if rounds is not None else time.monotonic() + seconds
    reports, smallest, skipped = [], [], []
    failing, drawn = set(), 0
    for number in itertools.count():
        if number == rounds or len(failing) == len(names) or (number and time.monotonic() > until):
            break
        for name in names:
            if name in failing or (number and time.monotonic() > until):
                continue
            case = DrawnCase.of(edge(name, number, seed, tile))
            if reason := why_not(case, dtype):
                skipped.append((case.note, reason))
                continue
            if misfit(getattr(module, name), [*case.inputs, *case.arguments]):
                skipped.append((case.note, f"your {name} does not take these arguments"))
                continue
            report, drawn = run_case(module, case, dtype=dtype), drawn + 1
            reports.append(report)
            if on_report is not None:
                on_report(drawn, None, report)
            if not report.passed:
                failing.add(name)
                allowed = max(2.0, min(20.0, until - time.monotonic()))
                least = shrink(module, report.case, dtype=dtype, seconds=allowed)
                smallest.append((run_case(module, least, dtype=dtype), report.case))
    absent = tuple(name for name in known if name not in names)
    return FuzzReport(
        module.__name__,
        tuple(reports),
        absent,
        tuple(skipped),
        remark=remark,
        smallest=tuple(smallest),
        drawn=drawn,
    )


def edge(operator, number, seed, tile=None):
    """The number-th recipe of an operator: what breaks kernels first, then anything."""
    rng = np.random.default_rng([seed, zlib.crc32(operator.encode()), number])
    first = [
        dict(n=33, m=65, d=8, p=5),
        dict(n=70, m=40, values="rising", mask="left", batch=3),
        dict(n=40, m=33, mask="holes", side="key"),
        dict(n=33, m=40, mask="heads", d=33, p=17),
        dict(n=1, m=35),
        dict(n=129, m=1, mask="empty"),
        dict(n=34, m=51, mask="holes", layout="interleaved"),
        dict(n=17, m=34, values="large"),
        dict(n=300, m=200, batch=1, heads=1),
        dict(n=20, m=24, mask="prefix", side="query", layout="transposed"),
        dict(n=5, m=600, batch=1, heads=1),
        dict(n=600, m=5, batch=1, heads=1, mask="one", side="key"),
    ]
    if tile is not None:
        first = at_tile(tile)
    own_seed = int(rng.integers(2**31))
    given = tuple(name for name in OPTIONAL.get(operator, ()) if rng.random() < 0.5)
    arguments = other_arguments(operator, rng)
    if number < len(first):
        said = dict(first[number])
    else:
        cap = 66 if operator == "sliced_attention" else 257
        sizes = [size for size in EDGES if size <= cap] if tile is None else around(tile)
        at_edges = 0.7 if tile is None else 1.0
        said = dict(
            n=int(rng.choice(sizes) if rng.random() < at_edges else rng.integers(1, cap)),
            m=int(rng.choice(sizes) if rng.random() < at_edges else rng.integers(1, cap)),
            d=int(rng.choice([1, 3, 8, 16, 33, 64, 80])),
            p=int(rng.choice([1, 5, 16, 33])),
            batch=int(rng.integers(0, 4)),
            heads=int(rng.integers(0, 4)),
            n_slices=int(rng.integers(1, 5)),
            rank=int(rng.integers(1, 4)),
            mask=str(rng.choice(MASKS)),
            side=str(rng.choice(SIDES)),
            padding=str(rng.choice(["100", "nan"])),
            values=str(rng.choice(["normal", "normal", "rising", "large", "equal", "ties"])),
            layout=str(rng.choice(["contiguous", "contiguous", "transposed", "interleaved"])),
        )
        if tile is not None:
            said |= dict(batch=1, heads=1)  # large ones
    if operator in UNMASKED:
        said |= dict(mask="none", side="both")
    if operator == "sliced_attention":
        said |= {key: min(said.get(key, 8), most) for key, most in (("n", 66), ("m", 66), ("d", 6))}
        if said.get("values") in ("equal", "ties"):
            said["values"] = "normal"
    if operator == "marginal_error":
        said["padding"] = "100"
    if said.get("rank", 2) > said.get("d", 8):
        said["rank"] = said["d"]
    return Recipe(operator, **said, given=given, arguments=arguments, seed=own_seed)


def around(tile):
    """Sizes at which a tile is full, lacks one, or has one too many."""
    return [tile - 1, tile, tile + 1, 2 * tile + 1]


def at_tile(tile):
    """Recipes, without their operator, at the edges of tiles of a size."""
    less, full, more, twice = around(tile)
    one = dict(batch=1, heads=1)
    return [
        dict(n=5, m=more, values="rising", **one),
        dict(n=more, m=7, values="rising", **one),
        dict(n=less, m=twice, mask="left", **one),
        dict(n=twice, m=less, mask="holes", **one),
        dict(n=full, m=full, **one),
        dict(n=more, m=twice, mask="prefix", values="rising", batch=2, heads=1),
    ]


def other_arguments(operator, rng):
    """Some arguments that are not the defaults."""
    choices = {
        "epsilon": [1.0, 0.5, 0.75, 2.0],
        "onto": ["key", "query"],
        "n_iter": [0, 1, 2, 5],
        "refine": [0, 1, 2],
        "cumulants": [True, False],
        "cost": ["bilinear", "sqeuclidean"],
        "hard": [False, True],
        "temperature": [0.125, 0.5],
        "inverse_temperature": [0.5, 2.0],
    }
    drawn = {name: choices[name][int(rng.integers(len(choices[name])))] for name in ARGUMENTS.get(operator, {})}
    return {name: x for name, x in drawn.items() if x != ARGUMENTS[operator][name]}
