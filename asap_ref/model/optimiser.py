"""Descent: AdamW, a schedule with warm-up, and a loop that loses at most an epoch when it is interrupted.

Everything is a function of (settings, seed, epoch): what an epoch draws, it draws from a generator made of the seed
and the epoch's number, so a resumed run ends with the same numbers as one that was never stopped.
"""

from __future__ import annotations

import json
import math
import numbers
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from asap_ref.support import files, trees
from asap_ref.support.arrays import array_namespace, to_numpy
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
        for name, least in {"epochs": 1, "batch_size": 1, "seed": 0}.items():
            value = check_count(getattr(self, name), name, "TrainingSettings", least=least)
            object.__setattr__(self, name, value)  # Python's own numbers, which a checkpoint can hold
        for name in ("learning_rate", "weight_decay", "warmup", "dropout"):
            zero = name != "learning_rate"
            value = check_positive(getattr(self, name), name, "TrainingSettings", or_zero=zero)
            object.__setattr__(self, name, value)
        if self.warmup > 1:
            raise ValueError(f"TrainingSettings: warmup is a share of the steps, at most 1, got {self.warmup}")
        if self.dropout >= 1:
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


def descend(
    model,
    batches,
    loss_and_gradients,
    settings,
    *,
    steps,
    made_by,
    checkpoint=None,
    resume=False,
    label=None,
    evaluate=None,
):
    """Train a model, which has ``params``, by what a batch says of them: (trained model, history).

    Parameters
    ----------
    batches : callable
        ``batches(rng)`` yields (batch, how many examples it is): ``steps`` of them, an epoch.
    loss_and_gradients : callable
        ``loss_and_gradients(model, batch)`` gives the mean loss of the batch and its gradient by the parameters.
    made_by : dict
        All that the result depends on besides; a checkpoint must come from the same.
    checkpoint, resume, label, evaluate
        As in `training.train`.
    """
    made_by = {"settings": asdict(settings), **made_by}
    params, moments, history = model.params, initial_moments(model.params), []
    if resume and checkpoint is not None and Path(checkpoint).exists():
        state, history = _load_checkpoint(checkpoint, made_by, {"params": params, "moments": moments})
        like = next(iter(trees.leaves(params)))
        state = trees.place(state, array_namespace(like), dtype=like.dtype, device=like.device)
        params, moments = state["params"], state["moments"]
    for epoch in epochs_with_progress(len(history), settings.epochs, label, history):
        losses, examples = [], 0
        for i, (batch, count) in enumerate(batches(np.random.default_rng([settings.seed, epoch]))):
            loss, grads = loss_and_gradients(replace(model, params=params), batch)
            step = epoch * steps + i + 1
            rate = learning_rate_at(step, settings.epochs * steps, settings)
            params, moments = adamw(params, grads, moments, step, rate, weight_decay=settings.weight_decay)
            losses.append(loss * count)  # stays on the device: one transfer an epoch
            examples += count
        record = {"epoch": epoch + 1, "loss": float(to_numpy(sum(losses))) / examples}
        if evaluate is not None:
            record |= _numbers(evaluate(replace(model, params=params)))
        history.append(record)
        if checkpoint is not None:
            state = {"params": params, "moments": moments}
            files.save(checkpoint, "checkpoint", state, {"made_by": made_by, "history": history})
    return replace(model, params=params), history


def _numbers(found):
    """What evaluate returned, as Python's own numbers; raise unless it is a dict of numbers."""
    if not isinstance(found, dict) or not all(isinstance(x, numbers.Number | np.bool) for x in found.values()):
        raise TypeError(f"train: evaluate must return a dict of numbers, got {found!r:.80}")
    return {str(name): x.item() if isinstance(x, np.generic) else x for name, x in found.items()}


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
    if label is None or sys.stderr is None:  # as in a process without a terminal on Windows
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
    from tqdm import tqdm  # here, like all that only some calls need: `import asap_ref` stays quick

    with tqdm(total=stop, initial=start, desc=label, unit="epoch") as bar:
        for epoch in range(start, stop):
            yield epoch
            bar.set_postfix(latest(), refresh=False)
            bar.update()
