"""Training: AdamW, a schedule with warm-up, and a loop that loses at most an epoch when it is interrupted.

Everything is a function of (settings, seed, epoch): the order of the examples in an epoch is drawn from the seed
and the epoch's number, so a resumed run ends with the same numbers as one that was never stopped.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from asap_ref.model.layers import cross_entropy_vjp
from asap_ref.model.text import batches, shuffled_batches, trimmed
from asap_ref.model.transformer import transformer_vjp
from asap_ref.support import files, trees
from asap_ref.support.arrays import array_namespace, to_numpy
from asap_ref.support.contracts import operator
from asap_ref.support.settings import check_count, check_positive
from asap_ref.support.trees import tree_map


@dataclass(frozen=True)
class TrainingSettings:
    """What a training run depends on, besides the model and the data.

    Examples
    --------
    >>> TrainingSettings(epochs=5).batch_size
    64
    """

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of all steps
    dropout: float = 0.0  # share of what the embedding and each branch of a block write
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            check_count(getattr(self, name), name, "TrainingSettings", least=1)
        check_count(self.seed, "seed", "TrainingSettings", least=0)
        check_positive(self.learning_rate, "learning_rate", "TrainingSettings")
        check_positive(self.weight_decay, "weight_decay", "TrainingSettings", or_zero=True)
        if check_positive(self.warmup, "warmup", "TrainingSettings", or_zero=True) > 1:
            raise ValueError(f"TrainingSettings: warmup is a share of the steps, at most 1, got {self.warmup}")
        if check_positive(self.dropout, "dropout", "TrainingSettings", or_zero=True) >= 1:
            raise ValueError(f"TrainingSettings: dropout is a share, below 1, got {self.dropout}")


# ----------------------------------------------------------------------------------------------------- optimiser


def initial_moments(params):
    """Start AdamW: first and second moments, all zero."""
    zeros = tree_map(lambda p: p * 0, params)
    return {"first": zeros, "second": zeros}


def adamw(params, grads, moments, step, learning_rate, *, weight_decay, betas=(0.9, 0.99), eps=1e-8):
    """Take one step of AdamW (Loshchilov & Hutter 2019): (new params, new moments).

    Weight decay is decoupled and applies to arrays of two axes (weights, positions), not to biases and gains.

    Examples
    --------
    >>> params = {"w": np.ones((1, 1))}
    >>> params, _ = adamw(params, {"w": np.ones((1, 1))}, initial_moments(params), 1, 0.1, weight_decay=0.0)
    >>> params["w"].round(3)
    array([[0.9]])
    """
    b1, b2 = betas
    first = tree_map(lambda m, g: b1 * m + (1 - b1) * g, moments["first"], grads)
    second = tree_map(lambda s, g: b2 * s + (1 - b2) * g * g, moments["second"], grads)
    # bias correction, folded into two scalars
    rate = learning_rate / (1 - b1**step)
    root = math.sqrt(1 - b2**step)

    def update(p, m, s):
        decay = 1 - learning_rate * weight_decay * (p.ndim == 2)
        return decay * p - rate * m / (array_namespace(s).sqrt(s) / root + eps)

    return tree_map(update, params, first, second), {"first": first, "second": second}


def learning_rate_at(step, total_steps, settings):
    """Linear warm-up, then a half cosine to zero; step counts from 1.

    Examples
    --------
    >>> settings = TrainingSettings(learning_rate=1.0, warmup=0.1)
    >>> [round(learning_rate_at(step, 100, settings), 2) for step in (1, 10, 55, 100)]
    [0.1, 1.0, 0.5, 0.0]
    """
    warmup = max(1, round(settings.warmup * total_steps))
    if step <= warmup:
        return settings.learning_rate * step / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


# ---------------------------------------------------------------------------------------------------------- loop


def dropout_noise(share, architecture, inputs, rng):
    """Draw the noise of dropout for a batch, a nested dict: 0 with probability ``share``, else 1 / (1 - share).

    Source: Srivastava et al. 2014, in the scaled form that leaves inference as it is.
    """
    tokens = architecture.n_tokens if architecture.vocabulary is None else 1 + inputs.shape[1]

    def draw():
        kept = rng.random((len(inputs), tokens, architecture.width), np.float32) >= share
        return kept.astype(np.float32) / np.float32(1 - share)

    blocks = {f"block{i}": {"heads": draw(), "mlp": draw()} for i in range(architecture.n_layers)}
    return {"embedding": draw(), **blocks}


@operator
def loss_and_gradients(model, inputs: "...", labels, *, noise=None):
    """Mean cross-entropy of a batch and its gradient in the parameters: (0-d array, nested dict)."""
    logits, model_vjp = transformer_vjp(model.params, inputs, model.architecture, model.attentions, noise=noise)
    loss, loss_vjp = cross_entropy_vjp(logits, labels)
    (d_logits,) = loss_vjp(1.0)
    return loss, model_vjp(d_logits)


def train(
    model,
    inputs,
    labels,
    settings,
    *,
    augment=None,
    checkpoint=None,
    resume=False,
    label="training",
    evaluate=None,
):
    """Train a model: (trained model, history).

    Parameters
    ----------
    model : Transformer
        Left as it is.
    inputs : numpy.ndarray (N, ...)
        Images, or token ids padded with 0; these are batched with others of like length.
    labels : numpy.ndarray (N,)
    settings : TrainingSettings
    augment : callable, optional
        ``augment(inputs, rng) -> inputs``, applied to each batch on the host.
    checkpoint : path, optional
        File that is rewritten, atomically, after each epoch.
    resume : bool
        Go on from the checkpoint if there is one; it must come from the same settings and model.
    label : str or None
        What the progress bar says; None for no bar.
    evaluate : callable, optional
        ``evaluate(model) -> dict of numbers``, called after each epoch and kept in the history.

    Returns
    -------
    (Transformer, list of dict)
        The history has one entry an epoch: epoch, loss, and what evaluate returned.

    Raises
    ------
    ValueError
        If the checkpoint comes from other settings, or labels do not fit.

    Examples
    --------
    >>> from asap_ref.model.mechanism import Attention
    >>> from asap_ref.model.transformer import Architecture, Transformer
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(2, size=64)
    >>> images = rng.standard_normal((64, 8, 8)) + labels[:, None, None]
    >>> model = Transformer.create(Architecture(n_layers=1, n_classes=2), Attention("softmax"))
    >>> model, history = train(model, images, labels, TrainingSettings(epochs=3), label=None)
    >>> history[-1]["loss"] < history[0]["loss"], accuracy(model, images, labels) > 0.9
    (True, True)
    """
    _check_examples(inputs, labels, model.architecture.n_classes)
    like = model.params["head"]["weight"]
    xp, device = array_namespace(like), like.device
    made_by = {"settings": asdict(settings), "architecture": asdict(model.architecture), "examples": len(inputs)}
    made_by["attention"] = [repr(attention) for attention in model.attentions]
    amortizers = [x for attention in model.attentions for x in trees.leaves(attention.state()[0])]
    if amortizers:  # which are too long to print
        made_by["amortizers"] = [zlib.crc32(np.ascontiguousarray(x)) for x in amortizers]
    made_by["data"] = [zlib.crc32(np.ascontiguousarray(x)) for x in (inputs, labels)]
    params, moments, history = model.params, initial_moments(model.params), []
    if resume and checkpoint is not None and Path(checkpoint).exists():
        state, history = _load_checkpoint(checkpoint, made_by, {"params": params, "moments": moments})
        state = trees.place(state, xp, device=device)
        params, moments = state["params"], state["moments"]

    steps_an_epoch = math.ceil(len(inputs) / settings.batch_size)
    total_steps = settings.epochs * steps_an_epoch
    for epoch in epochs_with_progress(len(history), settings.epochs, label, history):
        rng = np.random.default_rng([settings.seed, epoch])
        losses = []
        for i, picked in enumerate(shuffled_batches(inputs, settings.batch_size, rng)):
            batch = trimmed(inputs[picked])
            batch, noise = batch if augment is None else augment(batch, rng), None
            if settings.dropout:
                noise = dropout_noise(settings.dropout, model.architecture, batch, rng)
                noise = trees.place(noise, xp, dtype=like.dtype, device=device)
            batch = model.place(batch)
            batch_labels = xp.asarray(labels[picked], device=device)
            loss, grads = loss_and_gradients(replace(model, params=params), batch, batch_labels, noise=noise)
            step = epoch * steps_an_epoch + i + 1
            rate = learning_rate_at(step, total_steps, settings)
            params, moments = adamw(params, grads, moments, step, rate, weight_decay=settings.weight_decay)
            losses.append(loss * len(picked))  # stays on the device: one transfer an epoch
        record = {"epoch": epoch + 1, "loss": float(to_numpy(sum(losses))) / len(inputs)}
        if evaluate is not None:
            record |= evaluate(replace(model, params=params))
        history.append(record)
        if checkpoint is not None:
            state = {"params": params, "moments": moments}
            files.save(checkpoint, "checkpoint", state, {"made_by": made_by, "history": history})
    return replace(model, params=params), history


def _check_examples(inputs, labels, n_classes):
    for name, x in (("inputs", inputs), ("labels", labels)):
        if not isinstance(x, np.ndarray):
            raise TypeError(f"train: {name} must be a NumPy array, got {type(x).__name__}; use to_numpy")
    if len(inputs) != len(labels) or not len(inputs):
        raise ValueError(f"train: {len(inputs)} inputs and {len(labels)} labels; expected as many, at least one")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"train: labels must be integers, got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(
            f"train: labels lie from {labels.min()} to {labels.max()}, expected 0 to {n_classes - 1}, the classes "
            "of the model"
        )


def _of_checkpoint(arrays, settings):
    return arrays, {name: settings[name] for name in ("made_by", "history")}


def _load_checkpoint(path, made_by, like):
    state, saved = files.load(path, "checkpoint", _of_checkpoint)
    # through JSON, as the saved one went, so that tuples and lists compare equal
    expected = json.loads(json.dumps(made_by))
    if saved["made_by"] != expected:
        different = [key for key in expected if saved["made_by"].get(key) != expected[key]]
        raise ValueError(
            f"cannot resume from {path}: it was made with other {', '.join(different)}; "
            "use the same options, another output folder, or start anew without resuming"
        )
    try:
        trees.check_like(state, like)
    except ValueError as error:
        raise ValueError(f"cannot resume from {path}: {error}; start anew without resuming") from error
    return state, saved["history"]


def epochs_with_progress(start, stop, label, history):
    """Yield epoch numbers under a progress bar on a terminal, with plain lines otherwise; silently without a label."""
    if label is None:
        yield from range(start, stop)
        return

    def latest():
        return {key: f"{value:.4g}" for key, value in history[-1].items() if key != "epoch"} if history else {}

    if not sys.stderr.isatty():
        every = max(1, stop // 5)
        for epoch in range(start, stop):
            yield epoch
            if (epoch + 1) % every == 0 or epoch + 1 == stop:
                numbers = ", ".join(f"{key} {value}" for key, value in latest().items())
                print(f"{label}: epoch {epoch + 1}/{stop}, {numbers}", file=sys.stderr, flush=True)
        return
    with tqdm(total=stop, initial=start, desc=label, unit="epoch") as bar:
        for epoch in range(start, stop):
            yield epoch
            bar.set_postfix(latest(), refresh=False)
            bar.update()


def predict(model, inputs, *, batch_size=256):
    """Logits of many inputs, batch by batch.

    Parameters
    ----------
    model : Transformer
    inputs : numpy.ndarray (N, ...)
        Images, or token ids padded with 0.
    batch_size : int
        How many go through the model at a time.

    Returns
    -------
    numpy.ndarray (N, n_classes)

    Raises
    ------
    ValueError
        If there are no inputs, or they do not fit the model.

    Examples
    --------
    >>> from asap_ref.model.mechanism import Attention
    >>> from asap_ref.model.transformer import Architecture, Transformer
    >>> model = Transformer.create(Architecture(n_layers=1), Attention("softmax"))
    >>> predict(model, np.zeros((300, 8, 8))).shape
    (300, 10)
    """
    check_count(batch_size, "batch_size", "predict", least=1)
    if not len(inputs):
        raise ValueError("predict: inputs is empty; give at least one")
    picked = batches(inputs, batch_size)
    logits = np.concatenate([to_numpy(model(model.place(trimmed(inputs[batch])))) for batch in picked])
    return logits[np.argsort(np.concatenate(picked))]  # back in the order of the inputs


def accuracy(model, inputs, labels):
    """Share of inputs whose largest logit is that of their label.

    Parameters
    ----------
    model : Transformer
    inputs : numpy.ndarray (N, ...)
    labels : numpy.ndarray (N,)

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If there are not as many inputs as labels.

    Examples
    --------
    >>> from asap_ref.model.mechanism import Attention
    >>> from asap_ref.model.transformer import Architecture, Transformer
    >>> model = Transformer.create(Architecture(n_layers=1), Attention("softmax"))
    >>> images = np.zeros((3, 8, 8))
    >>> accuracy(model, images, np.argmax(predict(model, images), axis=-1))
    1.0
    """
    if len(inputs) != len(labels):
        raise ValueError(f"accuracy: {len(inputs)} inputs and {len(labels)} labels; expected as many")
    return float(np.mean(np.argmax(predict(model, inputs), axis=-1) == labels))
