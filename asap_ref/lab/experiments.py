"""What the main job runs on: for each data set its model, training, teacher and compile step, in one place.

An experiment is a description and computes nothing; reproduce.py runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from asap_ref.lab.clouds import draw_clouds, fresh_clouds, load_clouds
from asap_ref.lab.datasets import Dataset, load_digits, load_r8, load_topics
from asap_ref.model.architecture import Architecture
from asap_ref.model.compilation import CANDIDATES
from asap_ref.model.optimiser import TrainingSettings
from asap_ref.model.text import word_dropout
from asap_ref.support.settings import check_choice

MAIN = ("softmax", "sinkhorn", "asap")  # attentions whose labels matter most


@dataclass(frozen=True)
class Length:
    """A length at which models are judged, and on how much: plans and slow teachers grow as its square."""

    n: int | None = None  # points of a cloud; None: test inputs as they are
    judged: int | None = None  # test inputs whose labels are compared; None: all
    judged_others: int | None = None  # of these, for what is not in MAIN; None: all
    timed: int | None = None  # test inputs of a forward pass that is timed; None: all
    sampled: int = 400  # and how many give the errors, and times, of the attention alone
    rounds: int = 7  # times that everybody has a turn at least; the tables have medians
    alone_rounds: int | None = None  # the same for an attention alone, if they take below a second; None: rounds
    log_rounds: int = 1  # forward passes of the teacher in the log domain; 0: only one head is timed with it
    only: tuple[str, ...] = ()  # attentions judged; all when empty
    alone: tuple[str, ...] = ()  # attentions timed without the rest of the model; all when empty


@dataclass(frozen=True)
class Experiment:
    """A data set, and everything the main job needs to know to run on it."""

    load: Callable[[], Dataset]
    architecture: Architecture
    training: TrainingSettings
    teacher: Mapping  # settings of Sinkhorn attention
    compilation: Mapping = field(default_factory=dict)  # settings of compile_model beside its own
    word_dropout: float = 0.0  # share of the words of a text that training replaces by the unknown one
    calibrate_on: int | None = None  # how many of the training inputs, evenly spaced, at most; None: all
    points: int | None = None  # of a training cloud, where training inputs are the ink of images
    lengths: tuple[Length, ...] = (Length(),)
    truncations: tuple[int, ...] = (1, 2, 3, 4, 5)  # iterations to which the teacher is cut
    rivals: tuple[str, ...] | None = None  # of `replacements.rivals`; None: all

    @property
    def augment(self):
        """What is done to a batch of training inputs, as `train` takes it, or None."""
        if self.points is not None:
            return fresh_clouds(self.points)
        return word_dropout(self.word_dropout) if self.word_dropout else None

    def as_read(self, inputs):
        """Training inputs as the model reads them: of the ink of images, clouds, the same at every call."""
        return inputs if self.points is None else draw_clouds(inputs, self.points, np.random.default_rng(0))

    @property
    def n_tokens(self):
        """Tokens of a test input without the class token, where all inputs have the same number or are cut to it."""
        return None if self.architecture.n_tokens is None else self.architecture.n_tokens - 1

    def test_inputs(self, data, n):
        """Test inputs of that length."""
        return data.test_inputs if n is None else load_clouds(n).test_inputs


RIVALS = ("asap-refined", "initial-gaussian", "over-relaxed-softmax-2", "over-relaxed-gaussian-1", "dual-softmax")

EXPERIMENTS = {
    "clouds": Experiment(
        load=load_clouds,
        architecture=Architecture(features=2, n_heads=4),
        training=TrainingSettings(epochs=20),
        teacher={"n_iter": 10, "epsilon": 1.0},
        calibrate_on=512,
        points=64,
        lengths=(
            Length(64, timed=60, sampled=60, rounds=5, log_rounds=3),
            Length(256, judged=192, judged_others=96, timed=16, sampled=16, rounds=5, log_rounds=2),
            Length(1024, judged=100, judged_others=24, timed=4, sampled=4, rounds=4),
            Length(
                4096,
                judged=6,
                timed=1,
                sampled=1,
                rounds=3,
                alone_rounds=9,
                log_rounds=0,
                only=MAIN,
                alone=("sinkhorn", "sinkhorn-5", "asap", "asap-refined"),
            ),
        ),
        truncations=(1, 2, 3, 5),
        rivals=RIVALS,
    ),
    "digits": Experiment(
        load=load_digits,
        architecture=Architecture(n_heads=4),
        training=TrainingSettings(),
        teacher={"n_iter": 15, "epsilon": 1.0},
    ),
    "r8": Experiment(
        load=load_r8,
        architecture=Architecture(vocabulary=6000, length=96, n_classes=8, width=64, n_heads=4),
        training=TrainingSettings(epochs=6, batch_size=32, dropout=0.3),
        teacher={"n_iter": 10, "epsilon": 0.5},
        word_dropout=0.2,
        calibrate_on=1000,  # 68,000 tokens: all 5,485 stories give the same errors to three digits
        lengths=(Length(rounds=3, sampled=400),),
        rivals=(*RIVALS, "one-sided"),
    ),
    "topics": Experiment(  # made up, small: the chain on text without a download
        load=load_topics,
        architecture=Architecture(vocabulary=300, length=24, n_classes=4, width=16, n_layers=1, n_heads=2),
        training=TrainingSettings(epochs=6, batch_size=32, learning_rate=1e-2),
        teacher={"n_iter": 10, "epsilon": 0.5},
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
    if slices > compilation.get("candidates", CANDIDATES):
        changed["candidates"] = slices
    return changed
