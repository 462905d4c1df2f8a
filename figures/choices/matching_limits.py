"""What helps where plans are sharp and local, as in matching: features, one pass over the scores, refining."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from asap_ref import attention_scores, sinkhorn
from asap_ref.lab.clouds import load_clouds
from asap_ref.lab.machine import machine
from asap_ref.lab.matching import MatchingRun, compile_matcher, judged_pairs, measures, plans, train_matcher
from asap_ref.lab.pairs import draw_pairs
from asap_ref.method.features import Family
from asap_ref.method.masks import centred, of_features
from asap_ref.model.compilation import compile_model
from asap_ref.model.mechanism import Attention
from asap_ref.support import files
from asap_ref.support.tables import markdown_table

EPOCHS = 30
MAP = {"n_slices": 16, "candidates": 64, "cumulants": True, "quadratic": 8, "ridge": 1e-3}
TRIED = {
    "16 drawn slices alone": ("no pass", {"n_slices": 16, "candidates": None, "cumulants": False, "quadratic": 0}),
    "16 greedy slices, cumulants, quadratic 8": ("no pass", {}),
    "and moments 4": ("no pass", {"moments": 4}),
    "and moments 8": ("no pass", {"moments": 8}),
    "64 greedy slices of 256": ("no pass", {"n_slices": 64, "candidates": 256, "moments": 4}),
    "quadratic of full rank": ("no pass", {"quadratic": 48, "moments": 4}),
    "KL in place of regression": ("no pass", {"moments": 4, "objective": "kl"}),
    "calibrated at 48 and 128 points": ("no pass", {"moments": 4}),
    "keys near a query along 16 axes": ("no pass", {"moments": 4, "neighbours": 16}),
    "256 soft landmarks": ("no pass", {"moments": 4, "landmarks": 256}),
    "the softmax start": ("half a pass", {"moments": 4, "start": 1}),
    "what one pass over the scores knows": ("one pass", {"moments": 4, "start": 3}),
}
LONGER = "calibrated at 48 and 128 points"


# ------------------------------------------------------------- families that were tried here and are in no amortizer


class Tried(Family, name="tried"):
    """A family for calibration alone: it has no gradient."""

    @classmethod
    def fitted(cls, setting, axes):
        """Keep what the family needs of the setting."""
        return cls(axes(setting))

    def features(self, q, k, *, query_mask=None, key_mask=None):
        """(..., n, d), (..., m, d) -> (..., F, n)."""
        return centred(self.raw(q, k), of_features(query_mask))


@dataclass(frozen=True)
class Neighbours(Tried, name="neighbours"):
    """How many keys lie near a query along an axis: the log of a kernel density, at two widths."""

    basis: Any  # (d, r)

    @property
    def count(self):
        """Two a axis."""
        return 2 * self.basis.shape[-1]

    def raw(self, q, k):
        """Log densities."""
        x, y = np.swapaxes(q @ self.basis, -1, -2), np.swapaxes(k @ self.basis, -1, -2)
        spread = y.std(axis=-1, keepdims=True)[..., None]
        squares = ((x[..., :, None] - y[..., None, :]) / spread) ** 2
        return np.concatenate(
            [np.log(np.exp(-squares / (2 * h * h)).mean(-1) + 1e-6) for h in (0.1, 0.3)], axis=-2
        )


@dataclass(frozen=True)
class Landmarks(Tried, name="landmarks"):
    """The softmax start without a pass over the scores: against r random landmarks (Performer's features)."""

    landmarks: Any  # (d, r)

    @classmethod
    def fitted(cls, setting, axes):
        """Draw the landmarks, as many as asked for."""
        return cls(np.random.default_rng(0).standard_normal((axes(1).shape[0], setting)))

    @property
    def count(self):
        """One number."""
        return 1

    def raw(self, q, k):
        """Minus the log of sum_j exp(q k_j / sqrt(d)), estimated."""
        q, k = (x / x.shape[-1] ** 0.25 for x in (q, k))
        of_queries = q @ self.landmarks - np.sum(q * q, axis=-1, keepdims=True) / 2
        of_keys = k @ self.landmarks - np.sum(k * k, axis=-1, keepdims=True) / 2
        top = of_keys.max(axis=(-2, -1), keepdims=True)
        summed = np.exp(of_keys - top).sum(axis=-2, keepdims=True)
        first = of_queries.max(axis=-1, keepdims=True)
        return -(np.log((np.exp(of_queries - first) * summed).sum(-1) + 1e-30) + first[..., 0])[..., None, :]


@dataclass(frozen=True)
class Start(Tried, name="start"):
    """The softmax start f^(0); with three, also P0 c0 and P0 log c0 of the softmax plan and its column sums."""

    wanted: Any  # (d, 1 or 3): its width says how many

    @classmethod
    def fitted(cls, setting, axes):
        """One or three."""
        return cls(axes(setting))

    @property
    def count(self):
        """One or three."""
        return self.wanted.shape[-1]

    def raw(self, q, k):
        """From the whole scores."""
        S = attention_scores(q, k)
        f = sinkhorn(S, n_iter=0).query
        P = np.exp(S + f[..., None])
        c = P.sum(-2)[..., None]
        every = [f, (P @ c)[..., 0], (P @ np.log(np.maximum(c, 1e-6)))[..., 0]]
        return np.stack(every[: self.count], axis=-2)


# ------------------------------------------------------------------------------------------------------- measuring


def measure():
    """Train one teacher, compile it with each map, judge plans on test pairs, without and with a refining step."""
    run = MatchingRun()
    run = replace(run, training=replace(run.training, epochs=EPOCHS))
    teacher = train_matcher(run, "sinkhorn", label="teacher")
    pairs, partners = judged_pairs(run, run.points)
    expected = plans(teacher, pairs)

    def row(name, passes, model, r_squared=None):
        plan = plans(model, pairs)
        error = float(np.linalg.norm(plan - expected) / np.linalg.norm(expected))
        right = measures(plan, pairs, partners)["right"]
        return {"map": name, "passes": passes, "r_squared": r_squared, "plan_error": error, "right": right}

    rows = [row("teacher", "", teacher)]
    for t in run.truncations:
        rows.append(
            row(f"teacher, T = {t}", f"{t} passes", teacher.with_attention(Attention("sinkhorn", {"n_iter": t})))
        )
    for name, (passes, options) in TRIED.items():
        compiled, report = compiled_with(run, teacher, {**MAP, **options}, longer=name == LONGER)
        found = report[0]["r_squared"][0]
        rows.append(row(name, passes, compiled, found))
        refined, _ = compiled_with(run, teacher, {**MAP, **options, "refine": 1}, longer=name == LONGER)
        rows.append(row(f"{name}, refine 1", f"{passes} + 1", refined, found))
    return {"rows": rows, "machine": machine()}


def compiled_with(run, teacher, options, *, longer):
    """Compile on pairs of the run's length, and of 128 points as well where that is tried."""
    if not longer:
        return compile_matcher(replace(run, compilation={}), teacher, **options)
    ink = load_clouds(1).train_inputs[: run.calibrate_on]
    batches = [
        draw_pairs(ink[i : i + 128], n, np.random.default_rng([0, n, i]))[0] for n in (48, 128) for i in (0, 128)
    ]
    return compile_model(teacher, batches, **options)


# --------------------------------------------------------------------------------------------------------- drawing


def draw(record, folder):
    """Write matching_limits.md."""
    table = folder / "matching_limits.md"
    files.save_text(table, markdown(record))
    return [table]


def markdown(record):
    """Write the table, and what it says."""
    lines = [["map", "before the closing pass", "R² of the dual", "plan error", "right matches"]]
    for row in record["rows"]:
        explained = "" if row["r_squared"] is None else f"{row['r_squared']:.2f}"
        lines.append([row["map"], row["passes"], explained, f"{row['plan_error']:.3f}", f"{row['right']:.1%}"])
    run, made_on = MatchingRun(), record["machine"]
    return (
        f"{markdown_table(lines)}\n"
        f"Matching clouds of {run.points} points, one head of dimension {run.architecture.width}, T = {run.n_iter}, "
        f"{run.test} test pairs, one seed. Each map adds to 16 greedy slices, cumulants and quadratic features of rank "
        "8; refine 1: one more iteration, with the step that calibration finds. Soft landmarks, neighbours and what a "
        "pass knows are families of this script, without gradients: they show what would help, and are in no "
        f"amortizer. {made_on['processor']}, NumPy {made_on['numpy']}.\n"
    )
