"""Adding a family of features: one class here, and everything else works by itself."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from gradients import check_vjp
from problems import masks, qkv

import asap_ref as ar
from asap_ref.fast.form import Weighted, fast_form
from asap_ref.fast.prediction import fast_forms, predicted_dual
from asap_ref.fast.quadratic_form import QuadraticForm
from asap_ref.model.architecture import Architecture
from asap_ref.model.transformer import Transformer
from asap_ref.oracle import reference
from asap_ref.support.arrays import array_module, array_namespace, to_numpy, transpose
from asap_ref.support.family import FAMILIES
from asap_ref.support.masks import centred, keep_tokens, of_features


@dataclass(frozen=True)
class Stretch(ar.Family, name="stretch"):
    """(q·b)² for each direction b: a toy, but a gradient, arrays of its own and a setting it has."""

    along: Any  # (d, r) or (H, d, r)

    @classmethod
    def fitted(cls, setting, axes):
        return cls(axes(setting))

    @property
    def count(self):
        return self.along.shape[-1]

    def features_vjp(self, q, k, *, query_mask=None, key_mask=None):
        u = keep_tokens(q, query_mask) @ self.along  # (..., n, r)

        def vjp(d_features):
            d = transpose(centred(d_features, of_features(query_mask)))
            return 2 * (d * u) @ transpose(self.along), array_namespace(k).zeros_like(k), {}

        return centred(transpose(u * u), of_features(query_mask)), vjp


del FAMILIES["stretch"]  # other tests go through all that there are; these put it back


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(FAMILIES, "stretch", Stretch)


def fitted(**settings):
    q, k, _ = qkv(30, 3, n=6, m=6, d=4)
    return ar.fit_amortizer([(q, k)], **{"n_slices": 3, "n_iter": 4, "stretch": 2, **settings})


def test_it_is_asked_for_by_name_and_other_names_are_refused():
    amortizer = fitted()
    assert [family.name for family in amortizer.families] == ["slices", "cumulants", "stretch"]
    assert amortizer.family("stretch").along.shape == (3, 4, 2) and amortizer.weights.shape == (3, 3 + 3 + 2)
    with pytest.raises(TypeError, match=r"no setting strech; the families of features are .*stretch"):
        fitted(strech=2)


def test_its_gradient_is_followed_through_attention():
    q, k, v = qkv(2, 3, n=6, m=6, d=4)
    amortizer = fitted()
    check_vjp(
        lambda *x: ar.asap_attention(*x, amortizer),
        lambda *x: ar.asap_attention_vjp(*x, amortizer),
        [q, k, v],
        same_forward=False,
    )


@pytest.mark.parametrize("module", ["array_api_strict", "torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_masks_heads_files_and_modules(tmp_path, module):
    q, k, v = qkv(2, 3, n=6, m=9, d=4)
    query_mask, key_mask = (mask[:, None] for mask in masks(2, 6, 9))
    amortizer = fitted(cumulants=False, quadratic=2)
    given = {"query_mask": query_mask, "key_mask": key_mask}
    expected = ar.asap_attention(q, k, v, amortizer, **given)
    amortizer.save(tmp_path / "a.npz")
    loaded = ar.Amortizer.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(ar.asap_attention(q, k, v, loaded, **given), expected)
    some = [2, 0]
    found = ar.asap_attention(q[:, some], k[:, some], v[:, some], amortizer.of_heads(some), **given)
    np.testing.assert_allclose(found, expected[:, some], rtol=0, atol=1e-12)
    xp = array_module(module)
    place = {key: xp.asarray(mask) for key, mask in given.items()}
    out = ar.asap_attention(*(xp.asarray(x.astype(np.float32)) for x in (q, k, v)), amortizer, **place)
    np.testing.assert_allclose(to_numpy(out), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("registered", [False, True])
def test_the_fast_form_is_the_readable_one_with_or_without_one_of_its_own(registered):
    family = Stretch
    if registered:  # a subclass, since what is registered with a class stays

        @dataclass(frozen=True)
        class Folded(Stretch, name="folded"):
            pass

        del FAMILIES["folded"]

        @fast_form.register
        def _(family: Folded, weights, d):
            R, w = family.along, weights[:, None, :]  # (H, d, r), (H, 1, r)
            return QuadraticForm.of(len(weights), d, form=(R * w) @ transpose(R))

        family = Folded
    q, k, _ = qkv(4, 3, n=6, m=6, d=4)
    amortizer = fitted()
    amortizer = replace(amortizer, families=(*amortizer.families[:2], family(amortizer.families[2].along)))
    expected = amortizer.predict(q, k)
    found = centred(predicted_dual(q, k, amortizer), None)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    forms = fast_forms(amortizer, 4)
    assert any(isinstance(form, Weighted) for form in forms) != registered


def test_a_model_is_compiled_with_it_and_reported_on():
    teacher = Transformer.create(Architecture(n_layers=1, n_heads=4), ar.Attention("sinkhorn", {"n_iter": 5}))
    images = np.random.default_rng(0).standard_normal((2, 32, 8, 8))
    compiled, _ = ar.compile_model(
        teacher, [images[0]], n_slices=4, candidates=None, moments=0, quadratic=0, stretch=3
    )
    report = ar.fidelity_report(compiled, images[1])
    assert len(report.rows) == 4 and all(row["r_squared"] is not None for row in report.rows)
    again = ar.recalibrate(compiled.attentions[0].settings["amortizer"], [qkv(8, 4, n=17, m=17, d=12)[:2]])
    assert again.family("stretch").along.shape == (4, 12, 3)


def test_the_oracles_operators_take_it():
    q, k, _ = qkv(1, n=6, d=4)
    families = [*reference.families(np.eye(4)), Stretch(np.eye(4)[:, :2])]
    assert ar.dual_features(q, k, families).shape == (1, 4 + 3 + 2, 6)
