"""Between shapes of 48 and 72 points softmax looks at the outermost points; Sinkhorn and ASAP match the shapes."""

from functools import partial
from pathlib import Path

import numpy as np

from asap_ref import Attention, fit_amortizer
from asap_ref.lab.machine import machine
from asap_ref.lab.stopwatch import interleaved
from asap_ref.model.measures import column_distance, column_sums, plan_of
from asap_ref.support import files, presentation
from asap_ref.support.tables import markdown_table

N, M, EPSILON, T, SLICES = 48, 72, 0.05, 30, 16
TRAINING, TEST, SEED = 1500, 200, 0
NAMES = {"softmax": "softmax", "sinkhorn-1": "Sinkhorn, 1 iteration", "sinkhorn": "Sinkhorn", "asap": "ASAP"}


def shapes(count, rng):
    """Draw closed curves and their stretched copies: q, k, v and where each point of q belongs.

    The copy is A x + b with A symmetric and positive definite: the gradient of a convex function, hence the optimal
    transport map for the squared distance (Brenier), and so for our bilinear cost. The truth is known.
    """
    waves = np.arange(1, 4)
    cosines, sines = 0.6 * rng.standard_normal((2, count, 1, 2, 3)) / waves**1.5

    def curve(n):
        t = np.sort(rng.random((count, n)), axis=1)[:, :, None, None] * 2 * np.pi * waves
        return np.sum(cosines * np.cos(t) + sines * np.sin(t), axis=-1)  # (count, n, 2)

    angle = rng.random(count) * np.pi
    turn = np.moveaxis(np.asarray([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]), -1, 0)
    stretch = turn * rng.uniform(0.6, 1.6, (count, 1, 2)) @ np.swapaxes(turn, 1, 2)
    move = rng.uniform(-0.5, 0.5, (count, 1, 2))
    x, y = curve(N), curve(M) @ stretch + move
    truth = x @ stretch + move
    heads = [part[:, None] * 2**0.25 for part in (x, y)]  # one head; scores x·y after the division by sqrt(d)
    return *heads, y[:, None], truth[:, None]


def measure():
    """Calibrate on pairs of shapes, attend between others, and compare with where each point belongs."""
    rng = np.random.default_rng(SEED)
    q, k, *_ = shapes(TRAINING, rng)
    amortizer = fit_amortizer([(q, k)], n_slices=SLICES, n_iter=T, epsilon=EPSILON, seed=SEED)
    q, k, v, truth = shapes(TEST, rng)
    attentions = {
        "softmax": Attention("sinkhorn", {"n_iter": 0, "epsilon": EPSILON}),  # at the same epsilon
        "sinkhorn-1": Attention("sinkhorn", {"n_iter": 1, "epsilon": EPSILON}),
        "sinkhorn": Attention("sinkhorn", {"n_iter": T, "epsilon": EPSILON}),
        "asap": Attention("asap", {"amortizer": amortizer}),
    }
    calls = {name: partial(attention, q, k, v) for name, attention in attentions.items()}
    times = interleaved(calls, rounds=5, budget=np.inf)
    size = np.sqrt(np.sum(np.var(truth, axis=-2, keepdims=True), axis=-1))  # of each shape
    rows, shown = [], {}
    for name, attention in attentions.items():
        out = attention(q, k, v)
        rows.append(
            {
                "attention": name,
                "matching_error": float(np.mean(np.linalg.norm(out - truth, axis=-1) / size)),
                "column_error": float(column_distance(column_sums(attention, q, k), N).mean()) * M / N,
                "ms": 1e3 * float(np.median(times[name])),
            }
        )
        plan = plan_of(attention, q[:1], k[:1])[0, 0]
        shown[name] = {"mean": out[0, 0].tolist(), "mass": (plan.sum(0) * M / N).tolist()}
    return {
        "rows": rows,
        "shown": {"x": (q[0, 0] / 2**0.25).tolist(), "y": v[0, 0].tolist(), "attentions": shown},
        "settings": {"n": N, "m": M, "epsilon": EPSILON, "n_iter": T, "n_slices": SLICES, "seed": SEED}
        | {"training": TRAINING, "test": TEST},
        "r_squared": float(amortizer.r_squared[0]),
        "machine": machine(),
    }


def draw(record, folder):
    """Write the table and the picture of one pair of shapes."""
    settings, shown, made_on = record["settings"], record["shown"], record["machine"]
    lines = [["attention", "matching error", "column error", "ms for all pairs"]]
    for row in record["rows"]:
        errors = [f"{row[key]:.3f}" for key in ("matching_error", "column_error")]
        lines.append([NAMES[row["attention"]], *errors, f"{row['ms']:.1f}"])
    text = markdown_table(lines) + (
        f"\n{settings['test']} pairs of a closed curve ({settings['n']} points, the queries) and its stretched, "
        f"moved copy ({settings['m']} points, sampled elsewhere, the keys and values), epsilon "
        f"{settings['epsilon']}, Sinkhorn with T = {settings['n_iter']}, ASAP with {settings['n_slices']} slices "
        f"calibrated on {settings['training']} other pairs (R² of the dual {record['r_squared']:.3f}). Matching error: "
        "mean distance between what a point attends to and where it belongs, over the size of the shape. Column error: "
        f"mean distance of a key's share from n/m, over n/m. Float64, median of 5. {made_on['processor']}, "
        f"NumPy {made_on['numpy']}.\n"
    )
    table = Path(folder) / "cross_attention.md"
    files.save_text(table, text)

    fig, axes = presentation.subplots(1, 3, figsize=(10.5, 4.0), sharex=True, sharey=True)
    x, y = np.asarray(shown["x"]), np.asarray(shown["y"])
    for axis, name in zip(axes, ("softmax", "sinkhorn", "asap"), strict=True):
        mean, mass = (np.asarray(shown["attentions"][name][part]) for part in ("mean", "mass"))
        axis.plot(*np.stack([x, mean]).transpose(2, 0, 1), color="0.75", lw=0.7, zorder=1)
        light, colour = presentation.COLOURS["light"], presentation.COLOURS[name]
        axis.scatter(*x.T, s=14, color=presentation.COLOURS["black"], label="queries", zorder=2)
        axis.scatter(*y.T, s=22 * mass, color=light, label="keys, area: mass received", zorder=2)
        axis.scatter(*mean.T, s=26, marker="x", color=colour, label="what queries attend to", zorder=3)
        error = next(row["matching_error"] for row in record["rows"] if row["attention"] == name)
        axis.set(title=f"{NAMES[name]} (matching error {error:.2f})", xlabel="first coordinate", aspect="equal")
    axes[0].set_ylabel("second coordinate")
    axes[0].legend(fontsize=8, loc="best")
    return [table, *presentation.save(fig, Path(folder) / "cross_attention")]
