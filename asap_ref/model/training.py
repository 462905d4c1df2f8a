"""Training of a classifier, and what it then says: examples and labels in, a trained model and its logits out."""

from __future__ import annotations

import math
import zlib
from dataclasses import asdict, replace
from functools import partial

import numpy as np

from asap_ref.model.batching import batches, shuffled_batches, trimmed
from asap_ref.model.inputs import check_host_inputs, check_labels
from asap_ref.model.layers import cross_entropy_vjp
from asap_ref.model.mechanism import fingerprint
from asap_ref.model.optimiser import TrainingSettings, descend
from asap_ref.model.pieces import logits_in_pieces, loss_in_pieces, tokens_of
from asap_ref.model.recording import check_model
from asap_ref.model.transformer import transformer_vjp
from asap_ref.support import trees
from asap_ref.support.arrays import array_namespace, from_numpy, is_half, to_numpy
from asap_ref.support.contracts import operator
from asap_ref.support.settings import check_count


def dropout_noise(share, architecture, inputs, rng):
    """Draw the noise of dropout for a batch, a nested dict: 0 with probability ``share``, else 1 / (1 - share).

    Source: Srivastava et al. 2014, in the scaled form that leaves inference as it is.
    """

    def draw():
        shape = (len(inputs), tokens_of(architecture, inputs), architecture.width)
        kept = rng.random(shape, np.float32) >= share
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
    inputs : numpy.ndarray (N, ...), or Sequences
        Images, vectors, or token ids padded with 0; what is padded is batched with others of like length.
    labels : numpy.ndarray (N,)
    settings : TrainingSettings
    augment : callable, optional
        ``augment(inputs, rng) -> inputs``, applied to each batch on the host. It may turn what is given into what the
        model reads: images of ink into clouds of points, fresh ones in every epoch.
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
    >>> from asap_ref import Architecture, Attention, Transformer
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(2, size=64)
    >>> images = rng.standard_normal((64, 8, 8)) + labels[:, None, None]
    >>> model = Transformer.create(Architecture(n_layers=1, n_classes=2), Attention("softmax"))
    >>> model, history = train(model, images, labels, TrainingSettings(epochs=3), label=None)
    >>> history[-1]["loss"] < history[0]["loss"], accuracy(model, images, labels) > 0.9
    (True, True)
    """
    if not isinstance(settings, TrainingSettings):
        raise TypeError(f"train: settings must be TrainingSettings, got {type(settings).__name__}")
    check_model(model, "model", "train")
    if not hasattr(model.architecture, "n_classes"):
        raise TypeError(
            f"train: model must be a Transformer, got {type(model).__name__}; a matcher is trained by "
            "asap_ref.model.optimiser.descend, as the example of asap_ref.model.matching.Matcher shows"
        )
    seen = inputs if augment is None else augment(inputs[:1], np.random.default_rng(0))
    check_host_inputs(seen, model.architecture, "train")
    check_labels(labels, len(inputs), model.architecture.n_classes, "train")
    options = {"augment": augment, "checkpoint": checkpoint, "resume": resume, "label": label}
    if is_half(dtype := model.params["head"]["weight"].dtype):
        return _trained_in_float32(model, inputs, labels, settings, evaluate, dtype, **options)
    made_by = {
        "architecture": asdict(model.architecture),
        "examples": len(inputs),
        **fingerprint(model.attentions),
    }
    made_by["data"] = [zlib.crc32(np.ascontiguousarray(x)) for x in (*_arrays_of(inputs), labels)]
    return descend(
        model,
        partial(_batches, model, inputs, labels, settings, augment),
        _loss_of_batch,
        settings,
        steps=math.ceil(len(inputs) / settings.batch_size),
        made_by=made_by,
        checkpoint=checkpoint,
        resume=resume,
        label=label,
        evaluate=evaluate,
    )


def _batches(model, inputs, labels, settings, augment, rng):
    """Yield ((inputs, labels, noise of dropout), how many), on the model's device, in an order drawn from rng."""
    like = model.params["head"]["weight"]
    xp, device = array_namespace(like), like.device
    for picked in shuffled_batches(inputs, settings.batch_size, rng):
        batch = trimmed(inputs[picked])
        batch, noise = batch if augment is None else augment(batch, rng), None
        if settings.dropout:
            noise = dropout_noise(settings.dropout, model.architecture, batch, rng)
            noise = trees.place(noise, xp, dtype=like.dtype, device=device)
        classes = from_numpy(labels[picked].astype(np.int64), xp, device=device)
        yield (model.place(batch), classes, noise), len(picked)


def _loss_of_batch(model, batch):
    return loss_in_pieces(loss_and_gradients, model, batch)


def _arrays_of(inputs):
    return [array for _, array in trees.named_leaves("inputs", inputs)]


def _trained_in_float32(model, inputs, labels, settings, evaluate, dtype, **options):
    """Train a model of half precision: a step is smaller than half precision can add to a weight."""

    def given_back(trained):
        return replace(
            trained, params=trees.tree_map(lambda x: array_namespace(x).astype(x, dtype), trained.params)
        )

    single = trees.tree_map(lambda x: array_namespace(x).astype(x, array_namespace(x).float32), model.params)
    seen = None if evaluate is None else lambda trained: evaluate(given_back(trained))
    trained, history = train(replace(model, params=single), inputs, labels, settings, evaluate=seen, **options)
    return given_back(trained), history


def predict(model, inputs, *, batch_size=256):
    """Logits of many inputs, batch by batch.

    Parameters
    ----------
    model : Transformer
    inputs : numpy.ndarray (N, ...), or Sequences
        Images, vectors, or token ids padded with 0.
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
    >>> from asap_ref import Architecture, Attention, Transformer
    >>> model = Transformer.create(Architecture(n_layers=1), Attention("softmax"))
    >>> predict(model, np.zeros((300, 8, 8))).shape
    (300, 10)
    """
    check_count(batch_size, "batch_size", "predict", least=1)
    check_model(model, "model", "predict")
    check_host_inputs(inputs, model.architecture, "predict")
    if not len(inputs):
        raise ValueError("predict: inputs is empty; give at least one")
    picked = batches(inputs, batch_size)
    logits = np.concatenate(
        [to_numpy(logits_in_pieces(model, model.place(trimmed(inputs[batch])))) for batch in picked]
    )
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
    >>> from asap_ref import Architecture, Attention, Transformer
    >>> model = Transformer.create(Architecture(n_layers=1), Attention("softmax"))
    >>> images = np.zeros((3, 8, 8))
    >>> accuracy(model, images, np.argmax(predict(model, images), axis=-1))
    1.0
    """
    check_model(model, "model", "accuracy")
    check_host_inputs(inputs, model.architecture, "accuracy")
    check_labels(labels, len(inputs), model.architecture.n_classes, "accuracy")
    return float(np.mean(np.argmax(predict(model, inputs), axis=-1) == labels))
