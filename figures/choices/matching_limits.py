"""Where plans are sharp and local, more features of single tokens help little; a pass over the scores does."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from asap_ref import Attention, Slices, attention_scores, recalibrate, sinkhorn, transport_plan
from asap_ref.calibration.objectives import kl_loss_and_gradient
from asap_ref.calibration.omega import fitted_omega
from asap_ref.lab.clouds import load_clouds
from asap_ref.lab.machine import machine
from asap_ref.lab.matching import MatchingRun, compile_matcher, judged_pairs, measures, plans, train_matcher
from asap_ref.lab.pairs import draw_pairs
from asap_ref.method.amortizer import amortized_query_dual_vjp
from asap_ref.model.compilation import compile_model
from asap_ref.model.optimiser import TrainingSettings, adamw, initial_moments, learning_rate_at
from asap_ref.model.recording import activations
from asap_ref.support import files
from asap_ref.support.family import Family
from asap_ref.support.masks import centred, of_features
from asap_ref.support.tables import markdown_table

PLAIN = {"n_slices": 16, "candidates": 64, "cumulants": True, "quadratic": 8, "moments": 4, "ridge": 1e-3}
TRIED = {  # what is computed before the closing pass, and settings of compile_model beside PLAIN
    "16 drawn slices alone": (0, {"candidates": None, "cumulants": False, "quadratic": 0, "moments": 0}),
    "16 slices chosen among 64, cumulants, quadratic 8, moments 4": (0, {}),
    "64 slices chosen among 256": (0, {"n_slices": 64, "candidates": 256}),
    "quadratic 16": (0, {"quadratic": 16}),
    "quadratic 12, moments 8": (0, {"quadratic": 12, "moments": 8}),
    "KL in place of regression": (0, {"objective": "kl"}),
    "slices learned by gradient": (0, {}),
    "calibrated at 48 and 128 points": (0, {}),
    "keys near a query along 16 axes": (0, {"neighbours": 16}),
    "256 soft landmarks": (0, {"landmarks": 256}),
    "one-pass features": (1, {"one_pass": 1.0}),
    "one-pass features at two temperatures": (1, {"one_pass": (1.0, 2.0)}),
}
LEARNED, LONGER = "slices learned by gradient", "calibrated at 48 and 128 points"
REFINED = (0, 1, 2)
OMEGAS = (1.0, 1.2, 1.4, 1.6, 1.8)  # of over-relaxed iterations from softmax, which need no map
DESCENT = TrainingSettings(epochs=20, learning_rate=1e-2)


# ------------------------------------------------------- families that are tried here alone: they have no gradient


class Tried(Family, name="tried"):
    """A family on principal axes, for calibration and prediction."""

    @classmethod
    def fitted(cls, setting, axes):
        """Take that many axes."""
        return cls(axes(setting))

    def features(self, q, k, *, query_mask=None, key_mask=None):
        """(..., n, d), (..., m, d) -> (..., F, n)."""
        return centred(self.raw(q, k), of_features(query_mask))


@dataclass(frozen=True)
class Neighbours(Tried, name="neighbours"):
    """The keys near a query along an axis: their log density at two widths, and the mean of their scores."""

    basis: Any  # (d, r)

    @property
    def count(self):
        """Three an axis."""
        return 3 * self.basis.shape[-1]

    def raw(self, q, k):
        """Kernels on each axis by itself."""
        x, y = np.swapaxes(q @ self.basis, -1, -2), np.swapaxes(k @ self.basis, -1, -2)  # (..., r, n), (..., r, m)
        squares = ((x[..., :, None] - y[..., None, :]) / y.std(axis=-1)[..., None, None]) ** 2
        near, wide = (np.exp(-squares / (2 * h * h)) for h in (0.1, 0.3))  # (..., r, n, m)
        densities = [np.log(kernel.mean(axis=-1) + 1e-6) for kernel in (near, wide)]
        mean_score = np.sum(wide * attention_scores(q, k)[..., None, :, :], axis=-1) / (wide.sum(axis=-1) + 1e-6)
        return np.concatenate([*densities, mean_score], axis=-2)


@dataclass(frozen=True)
class Landmarks(Tried, name="landmarks"):
    """The dual of softmax without a pass over the scores: against r random landmarks (Performer's features)."""

    landmarks: Any  # (d, r)
    count = 1

    @classmethod
    def fitted(cls, setting, axes):
        """Draw the landmarks."""
        return cls(np.random.default_rng(0).standard_normal((axes(1).shape[-2], setting)))

    def raw(self, q, k):
        """Estimate minus the log of ``sum_j exp(q k_j / sqrt(d))``."""
        q, k = (x / x.shape[-1] ** 0.25 for x in (q, k))
        of_queries, of_keys = (x @ self.landmarks - np.sum(x * x, axis=-1, keepdims=True) / 2 for x in (q, k))
        summed = np.exp(of_keys - of_keys.max(axis=(-2, -1), keepdims=True)).sum(axis=-2, keepdims=True)
        top = of_queries.max(axis=-1, keepdims=True)
        return -(np.log((np.exp(of_queries - top) * summed).sum(-1) + 1e-30) + top[..., 0])[..., None, :]


# ------------------------------------------------------------------------------------------------------- measuring


def measure():
    """Train one teacher, compile it with each map, judge plans on test pairs, without and with refining steps."""
    run = MatchingRun()
    teacher = train_matcher(run, "sinkhorn", label="teacher")
    pairs, partners = judged_pairs(run, run.points)
    expected = plans(teacher, pairs)

    def row(name, passes, model, r_squared=None):
        plan = plans(model, pairs)
        error = float(np.linalg.norm(plan - expected) / np.linalg.norm(expected))
        right = measures(plan, pairs, partners)["right"]
        return {"map": name, "passes": passes, "r_squared": r_squared, "plan_error": error, "right": right}

    rows = [row("teacher", run.n_iter, teacher)]
    for t in run.truncations:
        rows.append(row(f"teacher, T = {t}", t, teacher.with_attention(Attention("sinkhorn", {"n_iter": t}))))
    for omega in OMEGAS:
        relaxed = Attention("over-relaxed", {"n_iter": 1, "omega": omega})
        rows.append(row(f"one iteration from softmax, relaxed by {omega}", 2, teacher.with_attention(relaxed)))
    for name, (passes, options) in TRIED.items():
        compiled, report = compiled_with(run, teacher, name, PLAIN | options)
        for refine in REFINED:
            title = f"{name}, refine {refine}" if refine else name
            model = refined(compiled, calibration_calls(run, teacher)[0], refine)
            rows.append(row(title, passes + refine, model, float(np.mean(report[0]["r_squared"]))))
    return {"rows": rows, "machine": machine()}


def compiled_with(run, teacher, name, options):
    """Compile on pairs of the run's length; on 128 points as well, or with learned slices, where that is tried."""
    if name != LONGER:
        compiled, report = compile_matcher(replace(run, compilation={}), teacher, **options)
        return (with_learned_slices(run, teacher, compiled), report) if name == LEARNED else (compiled, report)
    ink = load_clouds(1).train_inputs[: run.calibrate_on]
    half = len(ink) // 2
    batches = [
        draw_pairs(part, n, np.random.default_rng([0, n]), bend=run.bend)[0]
        for n, part in ((48, ink[:half]), (128, ink[half:]))
    ]
    return compile_model(teacher, batches, **options)


def calibration_calls(run, teacher, epoch=0):
    """Queries and keys of the closing attention on fresh pairs: a list of (q, k) in float64."""
    ink = load_clouds(1).train_inputs[: run.calibrate_on]
    pairs, _ = draw_pairs(ink, run.points, np.random.default_rng([3, epoch]), bend=run.bend)
    parts = [pairs[i : i + DESCENT.batch_size] for i in range(0, len(pairs), DESCENT.batch_size)]
    return [tuple(x.astype(np.float64) for x in activations(teacher, 0, False, part)) for part in parts]


def refined(compiled, call, refine):
    """The same map, with refining iterations after it, over-relaxed as far as is best on a batch."""
    amortizer = replace(compiled.attentions[0].settings["amortizer"], refine=refine)
    if refine:
        amortizer = replace(amortizer, omega=fitted_omega(amortizer, *call))
    return compiled.with_attention(Attention("asap", {"amortizer": amortizer}))


def with_learned_slices(run, teacher, compiled):
    """Descend with the directions of slices, by KL from the teacher's plan; each epoch weights are solved for anew."""
    amortizer = compiled.attentions[0].settings["amortizer"]
    slices, *others = amortizer.families
    params = {"directions": slices.directions}
    moments, step, total = initial_moments(params), 0, None
    for epoch in range(DESCENT.epochs):
        calls = calibration_calls(run, teacher, epoch)
        total = total or DESCENT.epochs * len(calls)
        amortizer = recalibrate(with_directions(amortizer, params), calls, forget=0.0)
        for q, k in calls:
            families = (Slices(params["directions"]), *others)
            f_hat, vjp = amortized_query_dual_vjp(q, k, families, amortizer.weights)
            S = attention_scores(q, k)
            columns = transport_plan(S, sinkhorn(S, n_iter=amortizer.n_iter)).sum(axis=-2)
            _, d_dual = kl_loss_and_gradient(S, f_hat, columns)
            _, _, (gradient, *_), _ = vjp(d_dual / len(q))
            step += 1
            rate = learning_rate_at(step, total, DESCENT)
            params, moments = adamw(params, gradient, moments, step, rate, weight_decay=0.0)
    learned = recalibrate(with_directions(amortizer, params), calibration_calls(run, teacher), forget=0.0)
    return compiled.with_attention(Attention("asap", {"amortizer": learned}))


def with_directions(amortizer, params):
    """Put other slices in the place of an amortizer's."""
    return replace(amortizer, families=(Slices(params["directions"]), *amortizer.families[1:]))


# --------------------------------------------------------------------------------------------------------- drawing


def draw(record, folder):
    """Write matching_limits.md."""
    table = folder / "matching_limits.md"
    files.save_text(table, markdown(record))
    return [table]


def markdown(record):
    """Write the table, with right matches beside the number of the teacher's."""
    rows, run, made_on = record["rows"], MatchingRun(), record["machine"]
    lines = [
        [
            "map",
            "passes before the closing one",
            "R² of the dual",
            "plan error",
            "right matches",
            "right / teacher's right",
        ]
    ]
    for row in rows:
        explained = "" if row["r_squared"] is None else f"{row['r_squared']:.2f}"
        passes = str(row["passes"]) if row["r_squared"] is not None else str(max(row["passes"] - 1, 0))
        kept = row["right"] / rows[0]["right"]
        lines.append(
            [row["map"], passes, explained, f"{row['plan_error']:.3f}", f"{row['right']:.1%}", f"{kept:.1%}"]
        )
    return (
        f"{markdown_table(lines)}\n"
        f"Matching clouds of {run.points} points, one head of dimension {run.architecture.width}, T = {run.n_iter}, "
        f"{run.test} test pairs, one seed. Every map but the first is the second one with what is named, in addition "
        "or in place. Refine: over-relaxed iterations before the closing one, as far as calibration finds best; R² is "
        "that of the prediction. Learned slices: directions by descent on KL, weights solved for anew each epoch. Soft "
        "landmarks and neighbours are families of this script alone, without gradients. "
        f"{made_on['processor']}, NumPy {made_on['numpy']}.\n"
    )
