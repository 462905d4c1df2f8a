"""Copies: replaced, copied, pickled, saved and loaded, amortizers, models and reports are equal and go on alone."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from families import families

import asap_ref as ar
from asap_ref.fast.prediction import predicted_dual
from asap_ref.support.arrays import array_module, is_made_under_a_mode, to_numpy
from asap_ref.support.trees import same

RNG = np.random.default_rng(0)
Q, K = RNG.standard_normal((2, 20, 1, 6, 4))
AMORTIZER = ar.fit_amortizer([(Q, K)], n_slices=4, n_iter=3, quadratic=2, moments=2)
IMAGES = RNG.standard_normal((12, 8, 8))
SMALL = ar.Architecture(patch=4, width=8, n_layers=1, n_heads=2)
TEACHER = ar.Transformer.create(SMALL, ar.Attention("sinkhorn", {"n_iter": 3}))
COMPILED, TOLD = ar.compile_model(TEACHER, [IMAGES], n_slices=2, candidates=None, moments=0, quadratic=0)
REPORT = ar.fidelity_report(COMPILED, IMAGES)
HOLDERS = {
    "amortizer": AMORTIZER,
    "statistics": AMORTIZER.statistics,
    **{f"family {family.name}": family for family in families(np.eye(4), basis=np.eye(4)[:, :2], moments=True)},
    "attention": COMPILED.attentions[0],
    "model": TEACHER,
    "compiled model": COMPILED,
    "report": REPORT,
    "drift": ar.detect_drift(REPORT, REPORT),
    "settings": ar.TrainingSettings(epochs=3),
    "architecture": SMALL,
}
COPIES = {
    "replace": replace,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {n}": lambda x, n=n: pickle.loads(pickle.dumps(x, n)) for n in (2, pickle.HIGHEST_PROTOCOL)},
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", HOLDERS)
def test_copies_are_equal_and_others_are_not(name, how):
    one = HOLDERS[name]
    other = COPIES[how](one)
    assert other is not one and type(other) is type(one) and repr(other) == repr(one)
    assert other == one and (other != one) is False and same(other, one)
    assert one != name and (one == 3) is False
    changed = CHANGES[name](one)
    assert changed != one and one != changed and (changed == one) is False


CHANGES = {  # the smallest there is
    "amortizer": lambda x: replace(
        x, weights=x.weights + np.eye(1, x.weights.shape[1]) * 1e-16 * x.weights[0, 0] * 4
    ),
    "statistics": lambda x: replace(x, count=x.count + 1),
    "family slices": lambda x: replace(x, directions=x.directions.astype("float32")),
    "family cumulants": lambda x: ar.Slices(np.eye(4)),
    "family quadratic": lambda x: replace(x, basis=x.basis[:, :1]),
    "family moments": lambda x: replace(x, basis=-x.basis),
    "attention": lambda x: ar.Attention("one-sided", x.settings),
    "model": lambda x: replace(x, params={**x.params, "more": np.ones(1)}),
    "compiled model": lambda x: x.with_attention(ar.Attention("softmax")),
    "report": lambda x: replace(x, rows=x.rows[1:]),
    "drift": lambda x: replace(x, drifted=True),
    "settings": lambda x: replace(x, seed=1),
    "architecture": lambda x: replace(x, n_classes=11),
}


def test_families_of_users_are_equal_by_value_too():
    from dataclasses import dataclass
    from typing import Any

    from asap_ref.support.family import FAMILIES

    @dataclass(frozen=True)
    class Own(ar.Family, name="own for a test"):
        basis: Any

    FAMILIES.pop("own for a test")
    assert Own(np.ones(2)) == Own(np.ones(2)) and Own(np.ones(2)) != Own(np.zeros(2))


def test_equality_sees_module_dtype_shape_and_nan():
    xp = array_module("array_api_strict")
    x = np.asarray([1.0, np.nan])
    assert same(x, x.copy()) and same({"a": [x, None]}, {"a": [x.copy(), None]})
    for other in (x[:1], x[None], x.astype("float32"), xp.asarray(x), x + 1, [1.0, np.nan]):
        assert not same(x, other)
    assert not same({"a": x}, {"b": x}) and not same((x,), [x]) and not same((x,), (x, x))


@pytest.mark.parametrize("name", HOLDERS)
def test_what_is_equal_is_one_member_of_a_set(name):
    if name not in ("report", "drift"):  # whose lists may change
        assert len({HOLDERS[name], copy.deepcopy(HOLDERS[name])}) == 1


@pytest.mark.parametrize("how", ["pickle 2", "deepcopy"])
def test_copies_work_where_the_first_has_been_at_work(how):
    """What was made for a module and a device of this process does not travel."""
    xp = array_module("torch")
    amortizer = replace(AMORTIZER)
    expected = ar.asap_attention(Q, K, K, amortizer)
    ar.asap_attention(*(xp.asarray(x) for x in (Q, K, K)), amortizer)
    other = COPIES[how](amortizer)
    assert other._placed == {}
    np.testing.assert_array_equal(ar.asap_attention(Q, K, K, other), expected)
    model = COPIES[how](COMPILED)
    np.testing.assert_array_equal(model(IMAGES.astype("float32")), COMPILED(IMAGES.astype("float32")))


def test_an_amortizer_cannot_be_edited_behind_its_constants():
    weights = AMORTIZER.weights.copy()
    amortizer = replace(AMORTIZER, weights=weights)
    before = ar.asap_attention(Q, K, K, amortizer)
    with pytest.raises(ValueError, match="read-only"):
        amortizer.weights[:] = 0
    with pytest.raises(ValueError, match="read-only"):
        amortizer.family("slices").directions[:] = 0
    weights[:] = 0  # those of the caller are the caller's
    np.testing.assert_array_equal(ar.asap_attention(Q, K, K, amortizer), before)
    none = replace(amortizer, weights=weights)
    assert not np.any(none.predict(Q, K)) and not np.any(predicted_dual(Q, K, none))
    for other in (copy.deepcopy(amortizer), pickle.loads(pickle.dumps(amortizer))):
        assert not other.weights.flags.writeable


def test_constants_made_in_inference_mode_serve_there_alone():
    import torch

    amortizer = replace(AMORTIZER)
    q, k = (torch.asarray(x) for x in (Q, K))
    with torch.inference_mode():
        inside = to_numpy(ar.asap_attention(q, k, k, amortizer))
    q = q.clone().requires_grad_()
    out = ar.asap_attention(q, k, k, amortizer)  # "Inference tensors cannot be saved for backward"
    out.sum().backward()
    assert bool(torch.all(torch.isfinite(q.grad)))
    np.testing.assert_allclose(to_numpy(out), inside, rtol=0, atol=1e-12)


def test_constants_made_while_jax_traces_serve_there_alone():
    import jax
    import jax.numpy as jnp

    amortizer = replace(AMORTIZER)
    seen = []

    known = jnp.ones(1)

    def traced(x):
        made = amortizer.placed(known, "weights", lambda: amortizer.weights)
        seen.append(is_made_under_a_mode(made))
        return x

    jax.jit(traced)(jnp.ones(1))
    assert seen == [True] and not amortizer._placed
    assert not is_made_under_a_mode(amortizer.placed(known, "weights", lambda: amortizer.weights))
    with pytest.raises(TypeError, match="q is traced by JAX"):
        jax.jit(amortizer.predict)(*(jnp.asarray(x, dtype=jnp.float32) for x in (Q, K)))


def test_models_of_other_modules_share_nothing_with_where_they_came_from(tmp_path):
    import torch

    TEACHER.save(tmp_path / "model.npz")
    model = ar.load_model(tmp_path / "model.npz", backend="torch")
    bias = model.params["head"]["bias"]
    bias += 1.0
    assert not np.any(TEACHER.params["head"]["bias"])
    from asap_ref.support.trees import place

    x = np.zeros(3)
    placed = place({"x": x}, array_module("torch"))["x"]
    placed += 1.0
    assert isinstance(placed, torch.Tensor) and not np.any(x)
