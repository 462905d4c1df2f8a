"""What the main job runs on: for each data set its model, training, teacher and compile step, in one place.

An experiment is a description and computes nothing; reproduce.py runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from asap_ref.contracts import check_choice
from asap_ref.datasets import Dataset, load_digits
from asap_ref.training import TrainingSettings
from asap_ref.transformer import Architecture


@dataclass(frozen=True)
class Experiment:
    """A data set, and everything the main job needs to know to run on it."""

    load: Callable[[], Dataset]
    architecture: Architecture
    training: TrainingSettings
    teacher: Mapping  # settings of Sinkhorn attention
    compilation: Mapping = field(default_factory=dict)  # settings of compile_model
    augment: Callable | None = None  # as in train


EXPERIMENTS = {
    "digits": Experiment(
        load=load_digits,
        architecture=Architecture(n_heads=4),
        training=TrainingSettings(),
        teacher={"n_iter": 15, "epsilon": 1.0},
        compilation={"n_slices": 16},
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
        compilation={**base.compilation, "seed": seed, **_given(n_slices=slices)},
    )


def _given(**settings):
    return {name: value for name, value in settings.items() if value is not None}
