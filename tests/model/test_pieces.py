"""A batch in pieces is the batch: its logits, its loss, its gradients, on any number of threads."""

import numpy as np
import pytest

from asap_ref import Architecture, Attention, Sequences, Transformer, predict
from asap_ref.fast import threads
from asap_ref.model import pieces
from asap_ref.model.pieces import logits_in_pieces, loss_in_pieces, pieces_of
from asap_ref.model.training import dropout_noise, loss_and_gradients
from asap_ref.support.trees import flatten

RNG = np.random.default_rng(0)
SINKHORN = Attention("sinkhorn", {"n_iter": 3})
KINDS = {
    "images": (Architecture(n_heads=4), RNG.standard_normal((10, 8, 8)).astype(np.float32)),
    "text": (
        Architecture(vocabulary=9, length=6, n_classes=10, width=48, n_heads=4),
        RNG.integers(1, 9, (10, 6)) * (np.arange(6) < RNG.integers(1, 7, (10, 1))),
    ),
    "vectors": (
        Architecture(features=2, n_heads=4),
        Sequences(RNG.standard_normal((10, 7, 2)).astype(np.float32), np.arange(7) < RNG.integers(1, 8, (10, 1))),
    ),
}
LABELS = RNG.integers(10, size=10)


def a_model(kind, dtype=np.float64):
    architecture, inputs = KINDS[kind]
    model = Transformer.create(architecture, SINKHORN, dtype=dtype)
    return model, model.place(inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.3], ids=["plain", "dropout"])
def test_losses_and_gradients_of_pieces_add_up(kind, share, monkeypatch):
    model, inputs = a_model(kind)
    noise = dropout_noise(share, model.architecture, inputs, np.random.default_rng(1)) if share else None
    loss, gradients = loss_and_gradients(model, inputs, LABELS, noise=noise)
    monkeypatch.setattr(pieces, "PIECE", 4 * pieces.tokens_of(model.architecture, inputs) * 48)
    assert [piece.stop for piece in pieces_of(model, inputs)] == [4, 8, 10]
    found, pieced = loss_in_pieces(loss_and_gradients, model, (inputs, LABELS, noise))
    np.testing.assert_allclose(found, loss, rtol=1e-13)
    for name, gradient in flatten(gradients).items():
        np.testing.assert_allclose(flatten(pieced)[name], gradient, atol=1e-13 * max(np.abs(gradient).max(), 1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_pieces_are_those_of_the_batch(kind, monkeypatch):
    model, inputs = a_model(kind)
    whole = model(inputs)
    monkeypatch.setattr(pieces, "PIECE", 3 * 17 * 48 // 2)
    np.testing.assert_allclose(logits_in_pieces(model, inputs), whole, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(predict(model, KINDS[kind][1]), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sharp", [False, True])
def test_the_number_of_threads_changes_no_bit(sharp, monkeypatch):
    """Sharp: some problems of a piece go back to the log domain, with all that share their chunk."""
    model, inputs = a_model("images", np.float32)
    monkeypatch.setattr(pieces, "PIECE", 2 * 17 * 48)
    if sharp:
        monkeypatch.setattr(threads, "CHUNK", 5 * 17 * 17)  # a piece of 8 problems is two chunks
        model.params["block0"]["heads"]["qkv"]["weight"] *= np.float32(5)
        model = model.with_attention(Attention("sinkhorn", {"n_iter": 5}))
    found = []
    for workers in ("1", "3"):
        monkeypatch.setenv("ASAP_REF_THREADS", workers)
        found.append((loss_in_pieces(loss_and_gradients, model, (inputs, LABELS, None)), predict(model, inputs)))
    (one, logits), (three, other_logits) = found
    assert one[0] == three[0]
    np.testing.assert_array_equal(logits, other_logits)
    for name, gradient in flatten(one[1]).items():
        np.testing.assert_array_equal(flatten(three[1])[name], gradient, err_msg=name)


def test_an_empty_batch_and_one_sequence_are_one_piece():
    model, inputs = a_model("images")
    assert pieces_of(model, inputs[:0]) == [slice(0, 0)]
    assert pieces_of(model, inputs[:1]) == [slice(0, 1)]
