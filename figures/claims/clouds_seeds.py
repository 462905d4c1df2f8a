"""With each of three seeds ASAP calibrated on 64 points keeps every label at 1024 points, at an error below 0.02."""

import numpy as np

from asap_ref import Attention
from asap_ref.fidelity.comparison import compare_attentions
from asap_ref.lab.experiments import experiment
from asap_ref.lab.machine import machine
from asap_ref.lab.replacements import geometric_mean, truncated
from asap_ref.lab.runs import calibration_batches, trained
from asap_ref.model.compilation import compile_model
from asap_ref.model.training import predict
from asap_ref.support import files
from asap_ref.support.tables import markdown_table

SEEDS = (0, 1, 2)
JUDGED = {64: (360, 40), 1024: (50, 2), 4096: (0, 1)}  # n: clouds for labels, and for errors


def measure():
    """Train, compile and judge with three seeds of weights, order and slices; the test clouds are the same."""
    return {
        "seeds": [of_seed(seed) for seed in SEEDS],
        "judged": {str(n): counts for n, counts in JUDGED.items()},
        "machine": machine(),
    }


def of_seed(seed):
    """Rows of one seed."""
    run = experiment("clouds", seed=seed)
    data = run.load()
    teacher = trained(run, data, Attention("sinkhorn", run.teacher), label=f"train sinkhorn, seed {seed}")
    compiled, _ = compile_model(teacher, calibration_batches(run, data), **run.compilation)
    cut = truncated(teacher, (1, 5))
    models, rows = {"sinkhorn": teacher, **cut, "asap": compiled}, []
    for n, (labelled, sampled) in JUDGED.items():
        clouds, labels = run.test_inputs(data, n), data.test_labels
        expected = said(teacher, clouds[:labelled], n)
        for name, model in models.items():
            found = said(model, clouds[:labelled], n)
            by_layer = compare_attentions(teacher, model.attentions, clouds[:sampled])
            errors = [geometric_mean(layer["output_error"]) for layer in by_layer]
            rows.append(
                {
                    "n": n,
                    "attention": name,
                    "accuracy": float(np.mean(found == labels[:labelled])) if labelled else None,
                    "agreement": float(np.mean(found == expected)) if labelled else None,
                    "output_errors": errors,
                }
            )
    return {"seed": seed, "rows": rows}


def said(model, clouds, n):
    """Label that a model gives to each cloud."""
    return predict(model, clouds, batch_size=max(1, 2**20 // n**2)).argmax(-1) if len(clouds) else np.zeros(0)


def draw(record, folder):
    """Write the table."""
    table = folder / "clouds_seeds.md"
    lines = [
        ["n", "attention", "test accuracy", "agreement with teacher", "output error, first layer", "second layer"]
    ]
    for i, row in enumerate(record["seeds"][0]["rows"]):
        rows = [seed["rows"][i] for seed in record["seeds"]]
        cells = [str(row["n"]), row["attention"]]
        cells += [spread([r[key] for r in rows], "{:.1%}") for key in ("accuracy", "agreement")]
        errors = [r["output_errors"] for r in rows]
        lines.append([*cells, *(spread([e[layer] for e in errors], "{:.4f}") for layer in (0, 1))])
    counts = "; ".join(f"{labels} and {errors} at n = {n}" for n, (labels, errors) in record["judged"].items())
    seeds = ", ".join(str(seed["seed"]) for seed in record["seeds"])
    files.save_text(
        table,
        f"{markdown_table(lines)}\nMean over seeds {seeds} of weights, order and slices, in brackets the least and the "
        "most; trained and calibrated on clouds of 64 points. Output error: relative, on the teacher's q, k, v, "
        f"geometric mean over heads. Test clouds for labels and for errors: {counts}. "
        f"{record['machine']['processor']}, NumPy {record['machine']['numpy']}.\n",
    )
    return [table]


def spread(values, style):
    """Mean, least and most; nothing where nothing was measured."""
    if None in values:
        return ""
    return f"{style.format(np.mean(values))} ({style.format(min(values))} to {style.format(max(values))})"
