"""Two implementations written from the oracle's page alone: they pass it, and they are what people would use."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from asap_ref import Attention, asap_attention, fit_amortizer, oracle
from asap_ref.model.architecture import Architecture
from asap_ref.model.compilation import compile_model
from asap_ref.model.transformer import Transformer

EXAMPLES = Path(__file__).parent / "examples"


@pytest.mark.parametrize("name", ["torch_layer", "jax_layer"])
def test_examples_share_no_code_with_this_package(name):
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) asap_ref", text, re.MULTILINE)


# ------------------------------------------------------------------------------------------------------------ torch


@pytest.fixture(scope="module")
def torch_layer():
    pytest.importorskip("torch")
    return oracle.load_module(EXAMPLES / "torch_layer.py")


@pytest.mark.parametrize(
    ("dtype", "version"),
    [
        pytest.param(dtype, version, marks=[pytest.mark.slow] if version == 2 or dtype == "float32" else [])
        for dtype in ("float64", "float32", "float16", "bfloat16")
        for version in (1, 2)
    ],
)
def test_torch_example_passes_the_whole_oracle(torch_layer, dtype, version):
    report = oracle.check_module(torch_layer, dtype=dtype, version=version, require_gradients=True)
    assert report.passed, report
    assert set(report.absent) <= ({"lse", "attend"} if version == 1 else {"training_trace", "compile_model"})
    assert "not all gradients given" not in str(report)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_torch_example_passes_what_fuzzing_draws(torch_layer, dtype):
    report = oracle.fuzz(torch_layer, rounds=20, dtype=dtype, seed=1)
    assert report.passed, str(report)
    assert report.drawn > 250


@pytest.fixture(scope="module")
def compiled():
    """A model compiled with quadratic features, which `compile_model` has by default."""
    rng = np.random.default_rng(0)
    teacher = Transformer.create(
        Architecture(n_layers=1, width=16, n_heads=4), Attention("sinkhorn", {"n_iter": 5})
    )
    model, _ = compile_model(teacher, [rng.random((32, 8, 8), np.float32)], n_slices=4, candidates=None, moments=0)
    return model


def test_torch_layer_loads_a_compiled_amortizer(torch_layer, compiled, tmp_path):
    import torch

    amortizer = compiled.attentions[0].settings["amortizer"]
    assert amortizer.family("quadratic") is not None
    amortizer.save(tmp_path / "amortizer.npz")
    layer = torch_layer.AsapAttention.load(tmp_path / "amortizer.npz", width=16)
    heads = compiled.params["block0"]["heads"]
    for linear, name in ((layer.qkv, "qkv"), (layer.out, "out")):
        linear.weight.data = torch.tensor(heads[name]["weight"].T)
        linear.bias.data = torch.tensor(heads[name]["bias"])
    x = np.random.default_rng(1).standard_normal((2, 17, 16)).astype(np.float32)
    mask = np.arange(17) < np.asarray([[17], [9]])
    q, k, v = np.moveaxis(
        (x @ heads["qkv"]["weight"] + heads["qkv"]["bias"]).reshape(2, 17, 3, 4, 4), (2, 3), (0, 2)
    )
    mixed = asap_attention(q, k, v, amortizer, query_mask=mask[:, None], key_mask=mask[:, None])
    expected = mixed.swapaxes(1, 2).reshape(2, 17, 16) @ heads["out"]["weight"] + heads["out"]["bias"]
    found = layer(torch.tensor(x), torch.tensor(mask)).detach().numpy()
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()  # float32, sums in another order


def test_torch_layer_trains_its_projections_and_leaves_the_amortizer(torch_layer):
    import torch

    rng = np.random.default_rng(0)
    amortizer = fit_amortizer([tuple(rng.standard_normal((2, 16, 2, 6, 4)))], n_slices=4, n_iter=5)
    torch.manual_seed(0)
    layer = torch_layer.AsapAttention(8, amortizer.family("slices").directions, amortizer.weights)
    x, target = torch.randn(16, 6, 8), torch.randn(16, 6, 8)
    before = layer.weights.clone()
    optimizer, losses = torch.optim.Adam(layer.parameters(), lr=0.02), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (layer(x) - target).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(layer.weights, before)
    assert {name for name, _ in layer.named_parameters()} == {"qkv.weight", "qkv.bias", "out.weight", "out.bias"}


# -------------------------------------------------------------------------------------------------------------- jax


@pytest.fixture(scope="module")
def jax_layer():
    pytest.importorskip("jax")
    return oracle.load_module(EXAMPLES / "jax_layer.py")


def test_jax_example_passes_the_ordinary_cases(jax_layer):
    import jax

    with jax.enable_x64(True):
        for operator in ("sinkhorn", "kantorovich_potentials_1d", "asap_attention"):
            for case in oracle.cases(operator)[:1]:
                report = oracle.run_case(jax_layer, case)
                assert report.passed, report


@pytest.mark.slow
def test_jax_layer_loads_a_compiled_amortizer_and_is_differentiated(jax_layer, compiled, tmp_path):
    import jax

    amortizer, heads = compiled.attentions[0].settings["amortizer"], compiled.params["block0"]["heads"]
    amortizer.save(tmp_path / "amortizer.npz")
    arrays, settings = jax_layer.load_amortizer(tmp_path / "amortizer.npz")
    params = {name: {key: jax.numpy.asarray(x) for key, x in heads[name].items()} for name in ("qkv", "out")}
    assert jax.tree.map(np.shape, jax_layer.init_layer(jax.random.key(0), 16)) == jax.tree.map(np.shape, params)
    x = np.random.default_rng(1).standard_normal((2, 17, 16)).astype(np.float32)
    mask = np.arange(17) < np.asarray([[17], [9]])
    q, k, v = np.moveaxis(
        (x @ heads["qkv"]["weight"] + heads["qkv"]["bias"]).reshape(2, 17, 3, 4, 4), (2, 3), (0, 2)
    )
    mixed = asap_attention(q, k, v, amortizer, query_mask=mask[:, None], key_mask=mask[:, None])
    expected = mixed.swapaxes(1, 2).reshape(2, 17, 16) @ heads["out"]["weight"] + heads["out"]["bias"]

    def layer(params):
        return jax_layer.asap_layer(params, x, mask, **arrays, **settings)

    assert np.abs(np.asarray(layer(params)) - expected).max() < 2e-5 * np.abs(expected).max()
    gradient = jax.grad(lambda params: (layer(params) ** 2).sum())(params)
    assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(gradient))


def test_jax_example_says_what_float64_needs(jax_layer):
    import jax

    with jax.enable_x64(False), pytest.raises(ValueError, match="float64 needs JAX_ENABLE_X64=1"):
        oracle.run_case(jax_layer, oracle.case("sinkhorn/epsilon"))


@pytest.mark.slow
def test_jax_example_passes_the_whole_oracle():
    pytest.importorskip("jax")
    command = Path(sys.executable).with_name("asap-ref")
    done = subprocess.run(
        # compiled anew for each shape: version 2, which has many, below
        [command, "oracle", "check", str(EXAMPLES / "jax_layer.py"), "--version", "1"],
        # compiled for speed it would run no faster here, and take longer to compile
        env={**os.environ, "JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    n = len(oracle.cases(version=1))
    assert f"jax_layer: {n} of {n} cases passed" in done.stdout
    assert "not there" not in done.stdout and "not all gradients given" not in done.stdout


@pytest.mark.slow
def test_jax_example_passes_what_fuzzing_draws(jax_layer):
    import jax

    with jax.enable_x64(True):  # compiled anew for each shape: few cases
        report = oracle.fuzz(jax_layer, rounds=1, seed=1)
    assert report.passed, str(report)


@pytest.mark.slow
def test_jax_example_passes_small_cases_with_every_mask_and_some_large_ones(jax_layer):
    import jax

    names = (
        "left_padding",
        "holes_in_keys",
        "mask_per_head",
        "an_empty_sequence",
        "one_key",
        "tiles_left_padding",
    )
    with jax.enable_x64(True):
        for case in oracle.cases(version=2):
            if case.id.split("/")[1] in names:
                report = oracle.run_case(jax_layer, case)
                assert report.passed, report
