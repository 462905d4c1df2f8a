"""The Transformer: its gradient, its agreement with torch over ten steps, and what a class token is for."""

from dataclasses import replace

import numpy as np
import pytest
from gradients import check_parameter_gradients

from asap_ref import Attention, fit_amortizer
from asap_ref.model.architecture import Architecture
from asap_ref.model.blocks import merge_heads, split_heads
from asap_ref.model.compilation import compile_model
from asap_ref.model.embedding import patches
from asap_ref.model.layers import cross_entropy
from asap_ref.model.optimiser import TrainingSettings, adamw, initial_moments, learning_rate_at
from asap_ref.model.recording import record
from asap_ref.model.training import loss_and_gradients
from asap_ref.model.transformer import Transformer, initialise
from asap_ref.support.trees import flatten, leaves, tree_map

SMALL = Architecture(image=(4, 6), patch=2, n_classes=3, width=12, n_layers=2, n_heads=3)
SINKHORN = Attention("sinkhorn", {"n_iter": 4, "epsilon": 0.5})
rng = np.random.default_rng(0)
IMAGES = rng.standard_normal((5, 4, 6))
LABELS = np.asarray([0, 2, 1, 1, 0])


def small_model(attention):
    return Transformer.create(SMALL, attention, dtype=np.float64)


def small_amortizer():
    q, k = rng.standard_normal((2, 8, SMALL.n_heads, SMALL.n_tokens, SMALL.width // SMALL.n_heads))
    return fit_amortizer([(q, k)], n_slices=4, n_iter=4, epsilon=0.5)


ATTENTIONS = {
    "softmax": Attention("softmax"),
    "sinkhorn": SINKHORN,
    "asap": Attention("asap", {"amortizer": small_amortizer()}),
    "sliced": Attention("sliced", {"temperature": 0.3}),
    "initial": Attention("initial", {"epsilon": 0.5}),
    "one-sided": Attention("one-sided", {"amortizer": small_amortizer()}),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_gradient_of_the_loss_is_its_derivative(name):
    model = small_model(ATTENTIONS[name])
    loss, grads = loss_and_gradients(model, IMAGES, LABELS)
    assert float(loss) == pytest.approx(float(cross_entropy(model(IMAGES), LABELS)), rel=1e-14)
    # atol: rounding of a loss near 1, 1e-16, over the step of 1e-5
    check_parameter_gradients(model, grads, lambda moved: cross_entropy(moved(IMAGES), LABELS), atol=1e-10)


def test_ten_training_steps_agree_with_torch():
    torch = pytest.importorskip("torch", reason="torch, the judge, is not installed: pip install asap-ref[peers]")
    from torch_transformer import forward

    model = small_model(SINKHORN)
    settings = TrainingSettings(learning_rate=1e-2, weight_decay=0.1)
    params, moments = model.params, initial_moments(model.params)
    judge = {key: torch.tensor(value, requires_grad=True) for key, value in flatten(params).items()}
    decayed = [value for value in judge.values() if value.ndim == 2]
    others = [value for value in judge.values() if value.ndim != 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.99)
    )
    for step in range(1, 11):
        rate = learning_rate_at(step, 10, settings)
        loss, grads = loss_and_gradients(replace(model, params=params), IMAGES, LABELS)
        params, moments = adamw(params, grads, moments, step, rate, weight_decay=0.1)

        for group in optimiser.param_groups:
            group["lr"] = rate
        logits = forward(judge, torch.tensor(IMAGES), SMALL.n_heads, SMALL.patch, 4, 0.5)
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS))
        optimiser.zero_grad()
        expected.backward()
        for key, gradient in flatten(grads).items():
            np.testing.assert_allclose(gradient, judge[key].grad.numpy(), rtol=1e-9, atol=1e-12, err_msg=key)
        optimiser.step()
        assert float(loss) == pytest.approx(expected.item(), rel=1e-11)  # float64 rounding, grown over the steps
    for key, value in flatten(params).items():
        # atol: a key's bias shifts whole rows of scores, so its gradient is zero but for rounding near 1e-18,
        # which AdamW divides by its eps of 1e-8 and multiplies by the learning rate, ten times over
        np.testing.assert_allclose(value, judge[key].detach().numpy(), rtol=1e-8, atol=1e-9, err_msg=key)


def test_mean_pooling_cancels_doubly_stochastic_attention():
    q, k, v = rng.standard_normal((3, 1, 6, 4))
    converged = Attention("sinkhorn", {"n_iter": 200})(q, k, v)
    np.testing.assert_allclose(converged.mean(-2), v.mean(-2), atol=1e-12)
    assert np.abs(Attention("softmax")(q, k, v).mean(-2) - v.mean(-2)).max() > 0.01


def test_patches_are_cut_row_by_row():
    image = np.arange(24.0).reshape(1, 4, 6)
    cut = patches(image, 2)
    np.testing.assert_array_equal(cut[0, 1], [2, 3, 8, 9])
    assert cut.shape == (1, 6, 4)


def test_heads_split_and_merge_back():
    x = rng.standard_normal((2, 5, 12))
    assert split_heads(x, 3).shape == (2, 3, 5, 4)
    np.testing.assert_array_equal(merge_heads(split_heads(x, 3)), x)


def test_initialisation_depends_on_the_seed_alone():
    first, second, other = (leaves(initialise(SMALL, seed=s)) for s in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", ["softmax", "sinkhorn", "asap"])
def test_a_saved_model_loads_and_gives_the_same_logits(name, tmp_path):
    model = Transformer.create(SMALL, SINKHORN if name == "asap" else Attention(name))
    if name == "asap":
        model, _ = compile_model(model, [IMAGES], n_slices=4, candidates=None, moments=0)
    model.save(tmp_path / "model.npz")
    loaded = Transformer.load(tmp_path / "model.npz")
    images = IMAGES.astype(np.float32)
    np.testing.assert_array_equal(loaded(images), model(images))
    assert [a.name for a in loaded.attentions] == [name, name]


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.slow), "array_api_strict"])
def test_a_saved_model_runs_on_another_array_module(backend, tmp_path):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    from asap_ref import array_module, to_numpy

    model, _ = compile_model(Transformer.create(SMALL, SINKHORN), [IMAGES], n_slices=4, candidates=None, moments=0)
    model.save(tmp_path / "model.npz")
    loaded = Transformer.load(tmp_path / "model.npz", backend=backend)
    images = IMAGES.astype(np.float32)
    logits = to_numpy(loaded(array_module(backend).asarray(images)))
    expected = model(images)
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())  # float32 rounding


def test_the_attention_may_differ_from_layer_to_layer():
    model = small_model(Attention("softmax")).with_attention(Attention("softmax"), SINKHORN)
    assert model(IMAGES).shape == (5, 3)
    assert len(record(model, IMAGES)) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(IMAGES[:, :2]), r"expected \(batch, \*\(4, 6\)\)"),
        (lambda m: m(IMAGES[0]), "expected"),
        (lambda m: m.with_attention(SINKHORN, SINKHORN, SINKHORN)(IMAGES), "3 attentions for 2 layers"),
        (lambda m: m(np.where(IMAGES > 1, np.nan, IMAGES)), "inputs contains NaN"),
        (lambda m: Architecture(width=10, n_heads=4), "not a multiple"),
        (lambda m: Architecture(image=(8, 9), patch=2), "cannot be cut"),
        (lambda m: Architecture(n_layers=0), "at least 1"),
        (lambda m: Attention("sparse"), "must be one of"),
    ],
)
def test_wrong_calls_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call(small_model(SINKHORN))


def test_integer_images_are_refused():
    with pytest.raises(TypeError, match="inputs must be real floating point"):
        small_model(SINKHORN)(IMAGES.astype(int))


def test_tree_map_goes_through_nested_dicts():
    doubled = tree_map(lambda x: 2 * x, {"a": 1, "b": {"c": 2}})
    assert doubled == {"a": 2, "b": {"c": 4}}
