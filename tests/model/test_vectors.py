"""Sequences of vectors: gradients, torch's opinion, padding, any length, every array module, wrong calls."""

from dataclasses import replace

import numpy as np
import pytest
from gradients import check_parameter_gradients

from asap_ref import (
    Architecture,
    Attention,
    Transformer,
    array_module,
    compile_model,
    load_model,
    predict,
    to_numpy,
)
from asap_ref.model.batching import batches, lengths, trimmed
from asap_ref.model.layers import cross_entropy
from asap_ref.model.optimiser import TrainingSettings
from asap_ref.model.sequences import Sequences
from asap_ref.model.training import accuracy, loss_and_gradients, train
from asap_ref.support.trees import flatten, place

SIZES = dict(n_classes=3, width=12, n_layers=2, n_heads=3)
ANY_LENGTH = Architecture(features=2, **SIZES)
WITH_PLACES = Architecture(features=2, length=7, **SIZES)
SINKHORN = Attention("sinkhorn", {"n_iter": 4, "epsilon": 0.5})
rng = np.random.default_rng(0)
VECTORS = rng.standard_normal((5, 6, 2))
MASK = np.arange(6) < np.asarray([6, 1, 4, 2, 5])[:, None]
PADDED = Sequences(np.where(MASK[..., None], VECTORS, np.nan), MASK)
LABELS = np.asarray([0, 2, 1, 1, 0])


def create(architecture, attention=SINKHORN, dtype=np.float64):
    return Transformer.create(architecture, attention, dtype=dtype)


@pytest.mark.parametrize("inputs", [VECTORS, PADDED], ids=["whole", "padded"])
@pytest.mark.parametrize("architecture", [ANY_LENGTH, WITH_PLACES], ids=["any length", "places"])
def test_gradient_of_the_loss_is_its_derivative(architecture, inputs):
    model = create(architecture)
    _, grads = loss_and_gradients(model, inputs, LABELS)
    # atol: rounding of a loss near 1, 1e-16, over the step of 1e-5
    check_parameter_gradients(model, grads, lambda moved: cross_entropy(moved(inputs), LABELS), atol=1e-10)


@pytest.mark.parametrize("architecture", [ANY_LENGTH, WITH_PLACES], ids=["any length", "places"])
def test_logits_and_gradients_agree_with_torch(architecture):
    torch = pytest.importorskip("torch", reason="torch, the judge, is not installed: pip install asap-ref[peers]")
    from torch_transformer import forward_vectors

    model = create(architecture)
    loss, grads = loss_and_gradients(model, PADDED, LABELS)
    judge = {key: torch.tensor(value, requires_grad=True) for key, value in flatten(model.params).items()}
    alone = [torch.tensor(x[mask]) for x, mask in zip(VECTORS, MASK, strict=True)]
    expected = torch.nn.functional.cross_entropy(forward_vectors(judge, alone, 3, 4, 0.5), torch.tensor(LABELS))
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-12)
    for key, gradient in flatten(grads).items():
        np.testing.assert_allclose(gradient, judge[key].grad.numpy(), rtol=1e-9, atol=1e-12, err_msg=key)


def test_what_padding_holds_does_not_matter():
    model = create(ANY_LENGTH)
    other = Sequences(np.where(MASK[..., None], VECTORS, 1e6), MASK)
    np.testing.assert_array_equal(model(PADDED), model(other))
    alone = [model(x[mask][None]) for x, mask in zip(VECTORS, MASK, strict=True)]
    np.testing.assert_allclose(model(PADDED), np.concatenate(alone), rtol=1e-12, atol=1e-14)


def test_without_places_order_means_nothing_and_any_length_will_do():
    model, order = create(ANY_LENGTH), rng.permutation(6)
    np.testing.assert_allclose(model(VECTORS[:, order]), model(VECTORS), rtol=1e-12, atol=1e-14)
    assert model(rng.standard_normal((1, 50, 2))).shape == (1, 3)
    placed = create(WITH_PLACES)
    assert np.abs(placed(VECTORS[:, order]) - placed(VECTORS)).max() > 1e-3


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.slow), "array_api_strict"])
@pytest.mark.parametrize("inputs", [VECTORS, PADDED], ids=["whole", "padded"])
def test_on_every_array_module(backend, inputs, tmp_path):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    inputs = replace(inputs, vectors=inputs.vectors.astype(np.float32)) if inputs is PADDED else inputs
    model, _ = compile_model(
        create(ANY_LENGTH, dtype=np.float32), [inputs], n_slices=4, candidates=None, moments=0
    )
    model.save(tmp_path / "model.npz")
    np.testing.assert_array_equal(
        load_model(tmp_path / "model.npz")(model.place(inputs)), model(model.place(inputs))
    )
    other = load_model(tmp_path / "model.npz", backend=backend)
    expected, found = model(model.place(inputs)), other(other.place(inputs))
    np.testing.assert_allclose(to_numpy(found), expected, atol=2e-5 * np.abs(expected).max())  # float32 rounding
    trained = replace(create(ANY_LENGTH), params=place(create(ANY_LENGTH).params, array_module(backend)))
    _, grads = loss_and_gradients(trained, trained.place(PADDED), array_module(backend).asarray(LABELS))
    _, judged = loss_and_gradients(create(ANY_LENGTH), PADDED, LABELS)
    for key, gradient in flatten(judged).items():
        # the modules' own products round differently, and jax holds float32 unless told otherwise
        close = 1e-4 if backend == "jax" else 1e-10
        np.testing.assert_allclose(to_numpy(flatten(grads)[key]), gradient, rtol=close, atol=close, err_msg=key)


def test_padded_sequences_train_predict_and_compile():
    labels = rng.integers(2, size=60)
    sequences = [rng.standard_normal((rng.integers(3, 9), 2)) + 2 * label for label in labels]
    inputs = Sequences.of(sequences)
    model = create(Architecture(features=2, n_classes=2, width=12, n_layers=1, n_heads=3), dtype=np.float32)
    settings = TrainingSettings(epochs=8, batch_size=16, dropout=0.1)
    model, history = train(model, inputs, labels, settings, label=None)
    assert history[-1]["loss"] < history[0]["loss"]
    assert accuracy(model, inputs, labels) > 0.9
    logits = predict(model, inputs, batch_size=7)
    one = model(model.place(trimmed(inputs[3:4])))
    np.testing.assert_allclose(logits[3:4], one, rtol=1e-4, atol=1e-5)  # another batch, another length: float32
    compiled, _ = compile_model(model, [inputs], n_slices=4, candidates=None, moments=0)
    assert np.mean(predict(compiled, inputs).argmax(-1) == logits.argmax(-1)) > 0.9


def test_batches_are_of_like_length():
    assert lengths(PADDED).tolist() == [6, 1, 4, 2, 5]
    assert [batch.tolist() for batch in batches(PADDED, 2)] == [[1, 3], [2, 4], [0]]
    assert trimmed(PADDED[np.asarray([1, 3])]).shape == (2, 2, 2)
    assert trimmed(VECTORS).shape == VECTORS.shape


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (ValueError, lambda: create(ANY_LENGTH)(VECTORS[..., :1]), r"expected \(batch, n, 2\) with n >= 1"),
        (ValueError, lambda: create(ANY_LENGTH)(VECTORS[0]), "inputs has shape"),
        (ValueError, lambda: create(WITH_PLACES)(np.zeros((1, 8, 2))), "n at most 7"),
        (ValueError, lambda: create(ANY_LENGTH)(np.full((1, 3, 2), np.nan)), "inputs contains NaN"),
        (TypeError, lambda: create(ANY_LENGTH)(np.zeros((1, 3), int)), "real floating point vectors"),
        (TypeError, lambda: create(Architecture(**SIZES))(PADDED), "floating point images, got <Sequences"),
        (ValueError, lambda: Architecture(image=(20, 6)), "give features instead"),
        (ValueError, lambda: Architecture(features=2, vocabulary=9, length=3), "of one kind"),
        (ValueError, lambda: Architecture(features=0), "features"),
        (TypeError, lambda: Architecture(vocabulary=9), "length must be an integer"),
        (ValueError, lambda: Sequences(VECTORS, MASK[:, :2]), "expected vectors"),
        (ValueError, lambda: Sequences.of([np.zeros((3, 2)), np.zeros((3, 1))]), "of the same features"),
    ],
)
def test_wrong_calls_say_what_was_expected(error, call, message):
    with pytest.raises(error, match=message):
        call()
