"""Training: learns, repeats itself from a seed, and resumes to the same numbers after an interruption."""

import io
from dataclasses import replace

import numpy as np
import pytest
from tallies import CALLS, refused

from asap_ref import Attention, array_module
from asap_ref.lab.datasets import load_digits, shift
from asap_ref.model.architecture import Architecture
from asap_ref.model.optimiser import TrainingSettings, learning_rate_at
from asap_ref.model.training import accuracy, predict, train
from asap_ref.model.transformer import Transformer
from asap_ref.support.trees import leaves, place

SMALL = Architecture(patch=4, width=16, n_layers=1, n_heads=4)
SETTINGS = TrainingSettings(epochs=4, batch_size=32, learning_rate=1e-2)
DIGITS = load_digits()
X, Y = DIGITS.train_inputs[:200], DIGITS.train_labels[:200]


def model(attention="sinkhorn"):
    settings = {"n_iter": 3} if attention == "sinkhorn" else {}
    return Transformer.create(SMALL, Attention(attention, settings))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a.params), leaves(b.params), strict=True))


def test_the_loss_falls_and_the_model_learns():
    trained, history = train(model(), X, Y, replace(SETTINGS, epochs=12))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert accuracy(trained, X, Y) > 0.6  # ten classes: chance is 0.1
    assert predict(trained, X, batch_size=64).shape == (200, 10)


def test_same_seed_same_bits_other_seed_other_bits():
    first, _ = train(model(), X, Y, SETTINGS)
    again, _ = train(model(), X, Y, SETTINGS)
    other, _ = train(model(), X, Y, replace(SETTINGS, seed=1))
    assert same(first, again)
    assert not same(first, other)


def test_training_leaves_the_model_it_was_given_alone():
    start = model()
    before = [x.copy() for x in leaves(start.params)]
    train(start, X, Y, replace(SETTINGS, epochs=1))
    assert all(np.array_equal(x, y) for x, y in zip(before, leaves(start.params), strict=True))


@pytest.mark.parametrize("stop_after", [1, 3])
def test_an_interrupted_run_resumes_to_the_same_numbers(tmp_path, stop_after):
    straight, straight_history = train(model(), X, Y, SETTINGS, augment=shift)
    checkpoint = tmp_path / "run.npz"

    def interrupt(_, calls=[]):  # noqa: B006 - the list counts the calls
        calls.append(None)
        if len(calls) > stop_after:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        train(model(), X, Y, SETTINGS, augment=shift, checkpoint=checkpoint, evaluate=interrupt)
    resumed, history = train(model(), X, Y, SETTINGS, augment=shift, checkpoint=checkpoint, resume=True)
    assert same(straight, resumed)
    assert history == straight_history


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first, history = train(model(), X, Y, SETTINGS, checkpoint=tmp_path / "run.npz")
    again, history_again = train(model(), X, Y, SETTINGS, checkpoint=tmp_path / "run.npz", resume=True)
    assert same(first, again) and history == history_again


def test_a_run_resumes_in_the_precision_of_the_model(tmp_path):
    double, single = (
        replace(model(), params=place(model().params, array_module("numpy"), dtype=dtype))
        for dtype in ("f8", "f4")
    )
    train(double, X, Y, SETTINGS, checkpoint=tmp_path / "run.npz")
    resumed, _ = train(single, X, Y, SETTINGS, checkpoint=tmp_path / "run.npz", resume=True)
    assert all(x.dtype == np.float32 for x in leaves(resumed.params))


def test_resuming_with_other_settings_is_refused(tmp_path):
    train(model(), X, Y, replace(SETTINGS, epochs=1), checkpoint=tmp_path / "run.npz")
    with pytest.raises(ValueError, match="made with other settings"):
        train(model(), X, Y, SETTINGS, checkpoint=tmp_path / "run.npz", resume=True)
    with pytest.raises(ValueError, match="attention"):
        train(model("softmax"), X, Y, replace(SETTINGS, epochs=1), checkpoint=tmp_path / "run.npz", resume=True)


def test_evaluation_after_each_epoch_is_kept_in_the_history():
    _, history = train(model(), X, Y, SETTINGS, evaluate=lambda m: {"accuracy": accuracy(m, X, Y)})
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    assert all(0 <= record["accuracy"] <= 1 for record in history)


def test_the_schedule_warms_up_and_comes_to_rest():
    rates = [learning_rate_at(step, 50, SETTINGS) for step in range(1, 51)]
    peak = int(np.argmax(rates))
    assert rates[peak] == SETTINGS.learning_rate and peak == 4
    assert np.all(np.diff(rates[:5]) > 0) and np.all(np.diff(rates[5:]) < 0)
    assert rates[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: train(model(), X[:0], Y[:0], SETTINGS), ValueError, "0 inputs"),
        (lambda: train(model(), X, Y[:10], SETTINGS), ValueError, "200 inputs and 10 labels"),
        (lambda: train(model(), X.tolist(), Y, SETTINGS), TypeError, "inputs must be a NumPy array, got list"),
        (lambda: train(model(), X, Y.tolist(), SETTINGS), TypeError, "labels must be a NumPy array, got list"),
        (lambda: train(model(), X.tolist(), Y, SETTINGS), TypeError, "use numpy.asarray, or Sequences.of"),
        (lambda: train(model(), X, Y.tolist(), SETTINGS), TypeError, "use numpy.asarray"),
        (lambda: train(model(), X, Y / 2, SETTINGS), TypeError, "labels must be integers, got float64"),
        (
            lambda: train(model(), X, Y.astype(str), SETTINGS),
            TypeError,
            r"got <U\d+; names, labels = numpy.unique",
        ),
        (
            lambda: Transformer.create(SMALL, "softmax"),
            TypeError,
            r"must be an Attention, .* give Attention\('softmax'",
        ),
        (lambda: model().with_attention("softmax"), TypeError, r"give Attention\('softmax'\)"),
        (lambda: train(model(), X, Y + 1, SETTINGS), ValueError, "labels lie from 1 to 10, expected 0 to 9"),
        (lambda: train(model(), X, Y - 1, SETTINGS), ValueError, "labels lie from -1 to 8, expected 0 to 9"),
        (lambda: TrainingSettings(epochs=0), ValueError, "epochs must be at least 1, got 0"),
        (lambda: TrainingSettings(warmup=1.5), ValueError, "a share of the steps, at most 1, got 1.5"),
        (lambda: TrainingSettings(dropout=1.0), ValueError, "a share, below 1, got 1.0"),
        (lambda: predict(model(), X[:0]), ValueError, "inputs is empty; give at least one"),
        (lambda: accuracy(model(), X, Y[:10]), ValueError, "200 inputs and 10 labels"),
    ],
)
def test_wrong_calls_say_what_was_expected(call, error, message):
    with refused(CALLS, error, match=message):
        call()


def test_progress_is_a_bar_on_a_terminal_and_plain_lines_elsewhere(monkeypatch):
    for on_terminal in (True, False):
        screen = io.StringIO()
        screen.isatty = lambda on_terminal=on_terminal: on_terminal
        monkeypatch.setattr("sys.stderr", screen)
        _, history = train(model(), X, Y, replace(SETTINGS, epochs=2), label="digits")
        told = screen.getvalue()
        assert ("\r" in told) == on_terminal and ("digits: epoch 2/2" in told) != on_terminal
        assert ("100%" in told) == on_terminal and f"{history[-1]['loss']:.4g}" in told


def test_the_split_of_the_digits_is_fixed_and_fair():
    again = load_digits()
    np.testing.assert_array_equal(again.test_labels, DIGITS.test_labels)
    assert len(DIGITS.train_labels) + len(DIGITS.test_labels) == 1797
    assert np.abs(DIGITS.train_inputs).max() <= 1
    counts = np.bincount(DIGITS.test_labels)
    assert counts.min() >= 34 and counts.max() <= 37  # a fifth of each class
    train_images = {image.tobytes() for image in DIGITS.train_inputs}
    assert not any(image.tobytes() in train_images for image in DIGITS.test_inputs)


def test_shifted_images_are_the_images_moved_by_at_most_one_pixel():
    image = np.zeros((1, 5, 5), np.float32)
    image[0, 2, 2] = 1
    seen = {tuple(np.argwhere(shift(image, np.random.default_rng(seed))[0])[0]) for seed in range(200)}
    assert seen == {(i, j) for i in (1, 2, 3) for j in (1, 2, 3)}
