"""More slices, features of a higher rank, more data, a smaller penalty: what each brings on clouds."""

from functools import partial
from pathlib import Path

import numpy as np
import teachers

from asap_ref import Amortizer, Attention, Slices, slice_directions
from asap_ref.calibration.batch import statistics_of_batch
from asap_ref.calibration.fit import principal_directions
from asap_ref.calibration.penalty import FLOOR, penalties
from asap_ref.calibration.slice_choice import select
from asap_ref.extensions.cumulants import Cumulants
from asap_ref.extensions.moments import Moments
from asap_ref.extensions.quadratic import Quadratic
from asap_ref.lab.clouds import draw_clouds
from asap_ref.lab.machine import machine
from asap_ref.lab.replacements import geometric_mean
from asap_ref.lab.runs import every
from asap_ref.model.measures import output_error
from asap_ref.support import files
from asap_ref.support.tables import markdown_table

SEEDS = (0, 1, 2)
BAR = 0.013
DEFAULT = "the default"
CHANGES = {  # what is changed of: 8 slices, quadratic of rank 8, moments of rank 4, one draw of each cloud, 1e-3
    DEFAULT: {},
    "16 slices": {"n_slices": 16},
    "32 slices": {"n_slices": 32},
    "quadratic of rank 12, which is full": {"quadratic": 12},
    "moments of rank 8": {"moments": 8},
    "both": {"quadratic": 12, "moments": 8},
    "four draws of each cloud": {"draws": 4},
    "a least penalty of 1e-4": {"floor": 1e-4},
    "all of these, with 16 slices": {"n_slices": 16, "quadratic": 12, "moments": 8, "draws": 4, "floor": 1e-4},
}
CANDIDATES, DRAWS, CLOUDS, EACH = 128, 4, 512, 64
CLOUDS_JUDGED = {64: 60, 1024: 4}  # points: test clouds


def measure():
    """Output errors of each change: {change: {points: [seed][layer][head]}}."""
    found = [of_seed(seed) for seed in SEEDS]
    errors = {name: {n: [seed[name][n] for seed in found] for n in map(str, CLOUDS_JUDGED)} for name in CHANGES}
    return {"errors": errors, "machine": machine()}


def of_seed(seed):
    """{change: {points: [layer][head]}}: all fitted from the same sums, over all features that any of them has."""
    run, data, model = teachers.teacher("clouds", seed)
    ink = every(data.train_inputs, CLOUDS)
    draws = [draw_clouds(ink, run.points, np.random.default_rng(i)) for i in range(DRAWS)]
    tests = {n: teachers.by_layer(model, [run.test_inputs(data, n)[:count]]) for n, count in CLOUDS_JUDGED.items()}
    given, found = (
        Attention("sinkhorn", run.teacher),
        {name: {str(n): [] for n in CLOUDS_JUDGED} for name in CHANGES},
    )
    for layer in range(len(model.attentions)):
        sums, families = {}, None
        for i, clouds in enumerate(draws):
            of_draws = sums.get(i)
            for start in range(0, CLOUDS, EACH):
                q, k, *_ = teachers.by_layer(model, [clouds[start : start + EACH]])[layer][0]
                families = families or all_features(q, k)
                own = statistics_of_batch("kl", families, run.teacher["n_iter"], run.teacher["epsilon"], (q, k))
                of_draws = own if of_draws is None else of_draws + own
            sums[i + 1] = of_draws
        for name, change in CHANGES.items():
            mapped = partial(solved, sums, families, **change)
            amortizer = Amortizer(*mapped(), epsilon=run.teacher["epsilon"], n_iter=run.teacher["n_iter"])
            attention = Attention("asap", {"amortizer": amortizer})
            for n, calls in tests.items():
                found[name][str(n)].append(output_error(given, attention, calls[layer]).tolist())
    return found


def all_features(q, k):
    """Every candidate, and families of the highest ranks on principal directions, in whose order lower ones nest."""
    axes = principal_directions(q, k, None, None)
    ranks = {name: max(change.get(name, 0) for change in CHANGES.values()) for name in ("quadratic", "moments")}
    drawn = Slices(slice_directions(q.shape[-1], CANDIDATES))
    return drawn, Cumulants(), Quadratic(axes[..., : ranks["quadratic"]]), Moments(axes[..., : ranks["moments"]])


def solved(sums, families, *, n_slices=8, quadratic=8, moments=4, draws=1, floor=FLOOR):
    """Families and weights of one map, from the sums over all features."""
    drawn, cumulants, *others = families
    smaller = [
        type(family)(family.basis[..., :rank]) for family, rank in zip(others, (quadratic, moments), strict=True)
    ]
    kept, start = [np.arange(CANDIDATES + cumulants.count)], CANDIDATES + cumulants.count
    for family, rank in zip(others, (quadratic, moments), strict=True):
        kept.append(start + np.flatnonzero(within(family, rank)))
        start += family.count
    heads = len(sums[draws].gram)
    statistics = sums[draws].of_features(np.tile(np.concatenate(kept), (heads, 1)))
    slices = Slices(drawn.directions[:, :n_slices])
    penalty = penalties((slices, cumulants, *smaller), statistics.count) + (floor - FLOOR)
    picked = select(statistics, CANDIDATES, n_slices, penalty)
    slices = Slices(np.take_along_axis(drawn.directions[None], picked[:, None, :], axis=-1))
    return (slices, cumulants, *smaller), statistics.of_slices(picked, CANDIDATES).ridge(penalty)


def within(family, rank):
    """Which features of a family are those of a lower rank: (F,) booleans.

    With tokens that are zero on all other directions, and of full rank on these, no other feature varies.
    """
    R = family.basis.shape[-1]
    flat = type(family)(np.eye(R))
    q, k = np.random.default_rng(0).standard_normal((2, 1, 8 * R, R)) * (np.arange(R) < rank)
    return np.ptp(flat.features(q, k)[0], axis=-1) > 0


# -------------------------------------------------------------------------------------------------- presentation


def draw(record, folder):
    """Write the table."""
    table = Path(folder) / "clouds_closer.md"
    files.save_text(table, markdown(record))
    return [table]


def markdown(record):
    """Write errors at each length, and what of it reaches the bar."""
    lines = [["changed of the default map", *(f"n = {n}" for n in CLOUDS_JUDGED), "at n = 64, of the default's"]]
    for name in CHANGES:
        errors = [_error(record, name, n) for n in CLOUDS_JUDGED]
        share = errors[0] / _error(record, DEFAULT, 64)
        lines.append([name, *(f"{error:.4f}" for error in errors), f"{share:.2f}"])
    reach = [name for name in CHANGES if _error(record, name, 64) <= BAR]
    made_on = record["machine"]
    return (
        f"{markdown_table(lines)}\nReach the bar of {BAR} at n = 64: {', '.join(reach) or 'none'}. Slices cost a sort "
        "each in every forward pass, and features of a higher rank ask for more calibration data; draws and the "
        "penalty cost nothing at inference.\n\n"
        "The default map (8 slices chosen among 128, cumulants, quadratic of rank 8, moments of rank 4, by KL, a "
        f"least penalty of {FLOOR:g}), calibrated on {CLOUDS} clouds of 64 points. Output errors relative to the "
        f"teacher's output, geometric means over layers and heads, means of {len(SEEDS)} seeds. "
        f"{made_on['processor']}, NumPy {made_on['numpy']}.\n"
    )


def _error(record, name, n):
    return float(np.mean([geometric_mean(np.concatenate(seed)) for seed in record["errors"][name][str(n)]]))
