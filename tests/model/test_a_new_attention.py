"""Adding an attention: a forward, a VJP and one line of the table, and everything else works by itself."""

import numpy as np
import pytest
from gradients import check_vjp
from problems import masks, qkv

import asap_ref as ar
from asap_ref.model.architecture import Architecture
from asap_ref.model.mechanism import MECHANISMS, Mechanism
from asap_ref.model.transformer import Transformer
from asap_ref.support.arrays import array_module, to_numpy


def tempered(q, k, v, amortizer, *, temperature=2.0, query_mask=None, key_mask=None):
    """ASAP on tempered queries and keys: a toy that takes an amortizer."""
    root = temperature**-0.5
    return ar.asap_attention(root * q, root * k, v, amortizer, query_mask=query_mask, key_mask=key_mask)


def tempered_vjp(q, k, v, amortizer, *, temperature=2.0, query_mask=None, key_mask=None):
    root = temperature**-0.5
    out, vjp = ar.asap_attention_vjp(root * q, root * k, v, amortizer, query_mask=query_mask, key_mask=key_mask)

    def back(d_out):
        dq, dk, dv = vjp(d_out)
        return root * dq, root * dk, dv

    return out, back


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(MECHANISMS, "tempered", Mechanism(tempered, tempered_vjp, predicts="query"))


@pytest.fixture
def compiled():
    teacher = Transformer.create(Architecture(n_layers=2, n_heads=4), ar.Attention("sinkhorn", {"n_iter": 5}))
    images = np.random.default_rng(0).standard_normal((32, 8, 8))
    return ar.compile_model(
        teacher, [images], n_slices=4, candidates=None, moments=0, quadratic=0, into="tempered"
    )[0], images


def test_a_model_is_compiled_into_it_saved_loaded_and_reported_on(compiled, tmp_path):
    model, images = compiled
    assert [attention.name for attention in model.attentions] == ["tempered"] * 2
    model.save(tmp_path / "m.npz")
    loaded = Transformer.load(tmp_path / "m.npz")
    np.testing.assert_array_equal(loaded(images.astype(np.float32)), model(images.astype(np.float32)))
    report = ar.fidelity_report(model, images)
    assert {row["attention"] for row in report.rows} == {"tempered"}
    assert all(row["r_squared"] is not None for row in report.rows)


def test_heads_may_mix_it_with_the_teacher(compiled):
    model, images = compiled
    teacher = Transformer.create(model.architecture, ar.Attention("sinkhorn", {"n_iter": 5}))
    mixed, report = ar.compile_model(
        teacher, [images], n_slices=4, candidates=None, moments=0, into="tempered", fallback=0.0
    )
    assert all(layer["on_sinkhorn"] == [0, 1, 2, 3] for layer in report)  # none is without error
    assert [attention.name for attention in mixed.attentions] == ["sinkhorn", "sinkhorn"]


def test_gradient_under_masks(compiled):
    attention = ar.Attention("tempered", {"amortizer": _amortizer(compiled)})
    q, k, v = qkv(2, 4, n=6, m=9, d=12)
    given = dict(zip(("query_mask", "key_mask"), (mask[:, None] for mask in masks(2, 6, 9)), strict=True))
    check_vjp(
        lambda *x: attention(*x, **given), lambda *x: attention.vjp(*x, **given), [q, k, v], same_forward=False
    )


@pytest.mark.parametrize("name", ["array_api_strict", "torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_it_runs_on_another_module(compiled, name):
    attention, xp = ar.Attention("tempered", {"amortizer": _amortizer(compiled)}), array_module(name)
    q, k, v = qkv(2, 4, n=6, m=9, d=12)
    given = dict(zip(("query_mask", "key_mask"), (mask[:, None] for mask in masks(2, 6, 9)), strict=True))
    expected = attention(q, k, v, **given)
    place = {key: xp.asarray(mask) for key, mask in given.items()}
    out = attention(*(xp.asarray(x.astype(np.float32)) for x in (q, k, v)), **place)
    np.testing.assert_allclose(to_numpy(out), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_its_settings_are_those_of_its_signature(compiled):
    with pytest.raises(ValueError, match="tempered attention needs amortizer; its settings are: amortizer, temp"):
        ar.Attention("tempered")
    assert ar.Attention("tempered", {"amortizer": None or _amortizer(compiled)}).setting("temperature") == 2.0


def _amortizer(compiled):
    return compiled[0].attentions[0].settings["amortizer"]
