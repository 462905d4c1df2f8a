"""On padded text ASAP and a few iterations keep the accuracy; ASAP's outputs are nearer than five iterations'."""

import tempfile
from pathlib import Path

import numpy as np

from asap_ref.lab import outcome
from asap_ref.lab.experiments import experiment
from asap_ref.lab.reproduce import ReproduceSettings, reproduce
from asap_ref.lab.runs import forward_milliseconds, whole_batches
from asap_ref.model.batching import lengths
from asap_ref.model.transformer import Transformer
from asap_ref.support import files

TIMED = ("softmax", "sinkhorn", "asap")
PUBLISHED = (  # test accuracy on this split (%), for orientation
    ("always the largest topic", 49.5, "Cardoso-Cachopo 2007"),
    ("naive Bayes", 96.1, "Cardoso-Cachopo 2007"),
    ("a linear SVM", 97.0, "Cardoso-Cachopo 2007"),
    ("Text GCN", 97.1, "Yao, Mao, Luo, AAAI 2019"),
)


def measure():
    """Run the main job as ``asap-ref reproduce --dataset r8`` does, then time its models on padded batches."""
    with tempfile.TemporaryDirectory() as out:
        report = reproduce(ReproduceSettings(dataset="r8"), Path(out))
        models = {name: Transformer.load(Path(out) / f"{name}.npz") for name in TIMED}
    run = experiment("r8")
    return report | {"padding": cost_of_padding(models, run.load().test_inputs, run.lengths[0].rounds)}


def cost_of_padding(models, inputs, rounds):
    """Milliseconds of a forward pass over all texts, batched by length, and all padded to one length."""
    by_length = whole_batches(inputs)
    layouts = {"by length": by_length, "all padded": np.array_split(inputs, len(by_length))}
    return {
        "words": int(lengths(inputs).sum()),
        "layouts": {
            layout: {
                "places": sum(batch.size for batch in batches),
                "ms": forward_milliseconds(models, batches, rounds),
            }
            for layout, batches in layouts.items()
        },
    }


def draw(record, folder):
    """Write the table and the figure."""
    table = Path(folder) / "reproduce_r8.md"
    files.save_text(table, f"{outcome.markdown(record)}\n{padding_told(record)}\n{orientation(record)}")
    return [table, *outcome.draw(record, folder, name="reproduce_r8")]


def padding_told(record):
    """Say what padding costs, and how long training took."""
    words, layouts = record["padding"]["words"], record["padding"]["layouts"]
    near, far = layouts["by length"], layouts["all padded"]
    saved = [f"{name} {far['ms'][name] / near['ms'][name]:.1f}" for name in TIMED]
    seconds = record["seconds_by_stage"]
    return (
        f"The test stories have {words} words. In batches of like length they take {near['places']} places, "
        f"{near['places'] / words:.2f} a word; padded to one length {far['places']}, and a forward pass takes so many "
        f"times as long: {', '.join(saved)}. Training took {seconds['train_softmax']:.0f} s with softmax and "
        f"{seconds['train_sinkhorn']:.0f} s with Sinkhorn attention, the compile step {seconds['compile']:.0f} s.\n"
    )


def orientation(record):
    """Cite what others published on the same split."""
    accuracy = {row["attention"]: row["accuracy"] for row in record["rows"]}
    told = "; ".join(f"{name} {value:.1f} % ({source})" for name, value, source in PUBLISHED)
    return (
        f"Published test accuracies on the same split, on whole stories, for orientation: {told}. Here, on the first "
        f"{record['settings']['architecture']['length']} words: softmax {accuracy['softmax']:.1%}, Sinkhorn "
        f"{accuracy['sinkhorn']:.1%}.\n"
    )
