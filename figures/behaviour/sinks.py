"""Trained softmax attention piles its mass on a few tokens, doubly-stochastic attention cannot, at any depth."""

from dataclasses import replace

import numpy as np

from asap_ref import Attention
from asap_ref.fidelity.diagnostics import attention_entropy, marginal_error, rank_residual_by_depth, sink_score
from asap_ref.lab.experiments import experiment
from asap_ref.lab.machine import machine
from asap_ref.lab.runs import trained
from asap_ref.model.compilation import compile_model
from asap_ref.model.measures import plan_of
from asap_ref.model.recording import record
from asap_ref.model.training import accuracy
from asap_ref.support import files, presentation
from asap_ref.support.arrays import to_numpy
from asap_ref.support.tables import markdown_table

SEEDS = (0, 1, 2)
EPOCHS = 12
LAYERS = 8
MECHANISMS = ("softmax", "sinkhorn", "asap")
NAMES = {"softmax": "softmax", "sinkhorn": "Sinkhorn", "asap": "ASAP, compiled from Sinkhorn"}
MEASURES = {
    "sink_score": "sink score (1: none, 17: one token takes all)",
    "entropy": "entropy of a row (nats; log 17 = 2.8)",
    "rank_residual": "rank residual (0: all tokens alike)",
}


def measure():
    """Train a deep model with softmax and with Sinkhorn attention, and look into every layer."""
    return {
        "runs": [row for seed in SEEDS for row in look_into(seed)],
        "settings": {"epochs": EPOCHS, "layers": LAYERS, "seeds": SEEDS},
        "machine": machine(),
    }


def look_into(seed):
    """Rows of one seed, one a mechanism, with a number for each layer."""
    run = experiment("digits", seed=seed, epochs=EPOCHS)
    run = replace(run, architecture=replace(run.architecture, n_layers=LAYERS))
    data = run.load()
    models = {}
    for attention in (Attention("softmax"), Attention("sinkhorn", run.teacher)):
        label = f"train {attention.name}, {LAYERS} layers"
        models[attention.name] = trained(run, data, attention, label=label)
    models["asap"], _ = compile_model(models["sinkhorn"], [data.train_inputs], **run.compilation)
    return [
        {
            "seed": seed,
            "attention": name,
            "accuracy": accuracy(model, data.test_inputs, data.test_labels),
            **by_depth(model, data.test_inputs),
        }
        for name, model in models.items()
    ]


def by_depth(model, inputs):
    """{measure: [mean over inputs and heads, for each layer]}; the residual also before the first."""
    found = {"sink_score": [], "entropy": [], "column_error": []}
    for attention, (q, k, *_) in zip(model.attentions, record(model, inputs), strict=True):
        plan = plan_of(attention, q, k)
        for name, value in (
            ("sink_score", sink_score(plan)),
            ("entropy", attention_entropy(plan)),
            ("column_error", marginal_error(plan)[1]),
        ):
            found[name].append(float(np.mean(to_numpy(value))))
    found["rank_residual"] = [float(np.mean(to_numpy(r))) for r in rank_residual_by_depth(model, inputs)]
    return found


# --------------------------------------------------------------------------------------------------------- drawing


def draw(record, folder):
    """Write sinks.md and the figure: sink score, entropy and rank residual against depth."""
    table = folder / "sinks.md"
    files.save_text(table, markdown(record))
    fig, axes = presentation.subplots(1, 3, figsize=(12, 4.0))
    for axis, (measure_, label) in zip(axes, MEASURES.items(), strict=True):
        for name in MECHANISMS:
            runs = np.asarray(
                [run[measure_] for run in record["runs"] if run["attention"] == name]
            )  # (seeds, layers)
            depth = np.arange(runs.shape[1]) + (measure_ != "rank_residual")
            style = {"color": presentation.COLOURS[name], "marker": presentation.MARKERS[name]}
            axis.plot(depth, runs.mean(0), label=NAMES[name], ls="--" if name == "asap" else "-", **style)
            axis.fill_between(depth, runs.min(0), runs.max(0), color=style["color"], alpha=0.15, lw=0)
        axis.set(xlabel="blocks passed" if measure_ == "rank_residual" else "layer", ylabel=label)
    axes[0].legend(loc="center", fontsize=9)
    fig.suptitle(
        "Softmax lets single tokens draw several times their share; doubly-stochastic attention does not\n"
        f"(digits, {record['settings']['layers']} layers; mean over heads and test images, band: range of "
        f"{len(record['settings']['seeds'])} seeds)",
        fontsize=11,
    )
    return [table, *presentation.save(fig, folder / "sinks")]


def markdown(record):
    """Write the table of extremes over depth, and what it says about rank."""
    lines = [
        ["attention", "test accuracy", "sink score: mean, worst layer", "entropy: mean", "column error: mean"]
    ]
    lines[0] += ["rank residual: embedding, after the last block"]
    last = {}
    for name in MECHANISMS:
        runs = [run for run in record["runs"] if run["attention"] == name]
        mean = {key: np.mean([run[key] for run in runs], axis=0) for key in (*MEASURES, "column_error")}
        accuracies = [100 * run["accuracy"] for run in runs]
        last[name] = np.asarray([run["rank_residual"][-1] for run in runs])
        lines.append(
            [
                NAMES[name],
                f"{np.mean(accuracies):.1f} ± {np.std(accuracies, ddof=1):.1f} %",
                f"{mean['sink_score'].mean():.2f}, {mean['sink_score'].max():.2f}",
                f"{mean['entropy'].mean():.2f}",
                f"{mean['column_error'].mean():.3f}",
                f"{mean['rank_residual'][0]:.2f}, {mean['rank_residual'][-1]:.2f}",
            ]
        )
    gap = np.abs(last["softmax"].mean() - last["sinkhorn"].mean())
    apart = last["softmax"].max() < last["sinkhorn"].min()
    return (
        f"{markdown_table(lines)}\n"
        f"Digits, {record['settings']['layers']} layers, {record['settings']['epochs']} epochs, mean over seeds "
        f"{', '.join(map(str, record['settings']['seeds']))}, heads and test images. Sink score: largest column "
        "mass of a plan over its fair share, 1 when doubly stochastic. Column error: the largest of a plan. "
        "Rank residual: distance of the tokens from being all the same, relative to their size. "
        + (
            f"Softmax ends with more alike tokens than Sinkhorn, by {gap:.2f}, in every seed.\n"
            if apart
            else "That softmax makes tokens more alike with depth than doubly-stochastic attention is not seen in "
            f"a model of this depth with skip connections and MLPs: the residuals differ by {gap:.2f}, and not in "
            "the same direction, or not in every seed.\n"
        )
    )
