"""What the main job runs on: for each data set its model, training, teacher and compile step, in one place.

An experiment is a description and computes nothing; reproduce.py runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from asap_ref.lab.datasets import Dataset, load_digits, load_r8, load_topics
from asap_ref.model.optimiser import TrainingSettings
from asap_ref.model.text import word_dropout
from asap_ref.model.transformer import Architecture
from asap_ref.support.settings import check_choice


@dataclass(frozen=True)
class Experiment:
    """A data set, and everything the main job needs to know to run on it."""

    load: Callable[[], Dataset]
    architecture: Architecture
    training: TrainingSettings
    teacher: Mapping  # settings of Sinkhorn attention
    compilation: Mapping = field(default_factory=dict)  # settings of compile_model
    word_dropout: float = 0.0  # share of the words of a text that training replaces by the unknown one
    calibrate_on: int | None = None  # how many of the training inputs, evenly spaced, at most; None: all
    rounds: int = 7  # forward passes timed; the table has their median

    @property
    def augment(self):
        """What is done to a batch of training inputs, as `train` takes it, or None."""
        return word_dropout(self.word_dropout) if self.word_dropout else None


EXPERIMENTS = {
    "digits": Experiment(
        load=load_digits,
        architecture=Architecture(n_heads=4),
        training=TrainingSettings(),
        teacher={"n_iter": 15, "epsilon": 1.0},
        compilation={"n_slices": 8, "candidates": 64, "quadratic": 12},
    ),
    "r8": Experiment(
        load=load_r8,
        architecture=Architecture(vocabulary=6000, length=96, n_classes=8, width=64, n_heads=4),
        training=TrainingSettings(epochs=6, batch_size=32, dropout=0.3),
        teacher={"n_iter": 10, "epsilon": 0.5},
        compilation={"n_slices": 8, "candidates": 64, "quadratic": 12},
        word_dropout=0.2,
        calibrate_on=1000,  # 68,000 tokens: all 5,485 stories give the same errors to three digits
        rounds=3,
    ),
    "topics": Experiment(  # made up, small: the chain on text without a download
        load=load_topics,
        architecture=Architecture(vocabulary=300, length=24, n_classes=4, width=16, n_layers=1, n_heads=2),
        training=TrainingSettings(epochs=6, batch_size=32, learning_rate=1e-2),
        teacher={"n_iter": 10, "epsilon": 0.5},
        compilation={"n_slices": 8},
        word_dropout=0.1,
    ),
}


def experiment(name, *, seed=0, epochs=None, n_iter=None, slices=None):
    """Look up an experiment by the name of its data set, with some of its settings changed; None keeps them.

    Parameters
    ----------
    name : str
        A key of EXPERIMENTS.
    seed : int
        Of the weights, the order of the examples, and the slice directions.
    epochs, n_iter, slices : int, optional

    Raises
    ------
    ValueError
        If there is no experiment of that name.

    Examples
    --------
    >>> experiment("digits", epochs=3).training.epochs
    3
    """
    check_choice(name, "name", "experiment", tuple(EXPERIMENTS))
    base = EXPERIMENTS[name]
    return replace(
        base,
        training=replace(base.training, seed=seed, **_given(epochs=epochs)),
        teacher={**base.teacher, **_given(n_iter=n_iter)},
        compilation=_with_slices({**base.compilation, "seed": seed}, slices),
    )


def _given(**settings):
    return {name: value for name, value in settings.items() if value is not None}


def _with_slices(compilation, slices):
    """Change the number of slices; there are never fewer candidates than slices to keep."""
    if slices is None:
        return compilation
    changed = {**compilation, "n_slices": slices}
    if "candidates" in compilation:
        changed["candidates"] = max(compilation["candidates"], slices)
    return changed
