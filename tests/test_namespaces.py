"""The same code on every array module, device and dtype gives NumPy's numbers, where the input lives."""

import numpy as np
import pytest
from backends import BACKENDS, CASES
from operators import OPERATORS, convert, map_arrays, outputs, random_like, vjp_of

import asap_ref as ar
from asap_ref import parameters
from asap_ref.arrays import array_namespace, to_numpy
from asap_ref.compilation import compile_model
from asap_ref.training import TrainingSettings, adamw, initial_moments, loss_and_gradients, predict, train
from asap_ref.transformer import Architecture, Transformer

# sums in another order: a few units in the last place of the largest entry, more through twelve half steps
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}


@pytest.fixture
def backend(request):
    """(backend, module, place, dtype), or a skip that says why."""
    name, dtype = request.param
    if reason := BACKENDS[name].missing():
        pytest.skip(reason)
    with BACKENDS[name](dtype) as (xp, place):
        yield BACKENDS[name], xp, place, dtype


on_every_backend = pytest.mark.parametrize("backend", CASES, indirect=True, ids="-".join)


def close(found, expected, tolerance):
    found, expected = to_numpy(found), to_numpy(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max(initial=0)))


@on_every_backend
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_and_gradient_agree_with_numpy(name, backend):
    _, xp, place, dtype = backend
    function, arguments, settings = OPERATORS[name]
    expected, expected_vjp = vjp_of(function)(**arguments, **settings)
    cotangent = random_like(expected)
    placed = convert(arguments, place)
    before = [to_numpy(x).copy() for x in outputs(tuple(placed.values()))]

    value = function(**placed, **settings)
    same, vjp = vjp_of(function)(**placed, **settings)
    gradients = vjp(map_arrays(place, cotangent))

    first = outputs(tuple(placed.values()))[0]
    for found, e in zip(outputs((value, gradients)), outputs((expected, expected_vjp(cotangent))), strict=True):
        assert array_namespace(found) is xp and found.dtype == getattr(xp, dtype) and found.device == first.device
        close(found, e, TOLERANCE[dtype])
    for x, y in zip(outputs(value), outputs(same), strict=True):  # the fast forms add in another order
        close(x, y, TOLERANCE[dtype])
    for x, y in zip(outputs(tuple(placed.values())), before, strict=True):
        np.testing.assert_array_equal(to_numpy(x), y)  # nothing was written to


@on_every_backend
@pytest.mark.parametrize("masked", [False, True])
def test_sharp_scores_pass_from_scaling_to_the_log_domain_and_back(backend, masked):
    """Off NumPy, scaling takes steps on trust: here they fail, at different steps of different problems."""
    _, _, place, dtype = backend
    rng = np.random.default_rng(0)
    q, k, v = 12 * rng.standard_normal((3, 2, 3, 12, 4))
    masks = (
        {"query_mask": rng.random((2, 3, 12)) < 0.8, "key_mask": rng.random((2, 3, 12)) < 0.8} if masked else {}
    )
    settings = {"n_iter": 25}
    expected = ar.attention.sinkhorn_attention(q, k, v, **masks, **settings)
    placed = convert({"q": q, "k": k, "v": v, **masks}, place)
    out, vjp = ar.sinkhorn_attention_vjp(**placed, **settings)
    tolerance = {"float64": 1e-9, "float32": 2e-3}[dtype]  # scores of 500: rounding times the condition of exp
    close(ar.sinkhorn_attention(**placed, **settings), expected, tolerance)
    close(out, expected, tolerance)
    _, expected_vjp = ar.attention.sinkhorn_attention_vjp(q, k, v, **masks, **settings)
    for found, e in zip(vjp(placed["v"]), expected_vjp(v), strict=True):
        close(found, e, 10 * tolerance)


SMALL = Architecture(patch=4, width=16, n_layers=1, n_heads=4)
IMAGES = np.random.default_rng(0).standard_normal((12, 8, 8))
LABELS = np.arange(12) % 10
ATTENTIONS = {
    "softmax": ar.Attention("softmax"),
    "sinkhorn": ar.Attention("sinkhorn", {"n_iter": 4}),
}


def model_on(place, attention):
    model = Transformer.create(SMALL, ATTENTIONS[attention], dtype=np.float64)
    return Transformer(SMALL, parameters.tree_map(place, model.params), model.attentions)


def one_step(model, images, labels):
    """Loss, gradients and the parameters after a step of AdamW."""
    loss, gradients = loss_and_gradients(model, images, labels)
    moments = initial_moments(model.params)
    params, _ = adamw(model.params, gradients, moments, 1, 1e-2, weight_decay=0.1)
    return loss, gradients, params


@on_every_backend
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_training_step_is_the_same_everywhere(backend, attention):
    _, xp, place, dtype = backend
    expected = one_step(model_on(lambda x: x, attention), IMAGES, LABELS)
    loss, gradients, params = one_step(model_on(place, attention), place(IMAGES), place(LABELS))
    close(loss, expected[0], TOLERANCE[dtype])
    for found, e in zip(parameters.leaves(gradients), parameters.leaves(expected[1]), strict=True):
        assert array_namespace(found) is xp and found.dtype == getattr(xp, dtype)
        close(found, e, 10 * TOLERANCE[dtype])
    # AdamW divides by the gradient's size, so its first step may flip where a gradient is nothing but rounding
    size = [np.abs(to_numpy(g)) > 1e3 * TOLERANCE[dtype] for g in parameters.leaves(expected[1])]
    for found, e, clear in zip(parameters.leaves(params), parameters.leaves(expected[2]), size, strict=True):
        close(to_numpy(found)[clear], e[clear], 10 * TOLERANCE[dtype])


@on_every_backend
def test_train_compile_save_there_and_load_here(backend, tmp_path):
    """The whole way on one module, then the file on NumPy; and NumPy's file there: the same numbers."""
    used, _, place, dtype = backend
    settings = TrainingSettings(epochs=1, batch_size=12, learning_rate=1e-3)
    trained, _ = train(model_on(place, "sinkhorn"), IMAGES, LABELS, settings)
    compiled, report = compile_model(trained, [IMAGES], n_slices=4)
    assert len(report) == 1
    compiled.save(tmp_path / "there.npz")
    here = Transformer.load(tmp_path / "there.npz")
    logits = predict(compiled, IMAGES)
    assert logits.dtype == here.params["head"]["bias"].dtype == dtype
    close(predict(here, IMAGES), logits, 100 * TOLERANCE[dtype])  # the prediction sorts: ties may fall otherwise

    here.save(tmp_path / "here.npz")
    there = Transformer.load(tmp_path / "here.npz", backend=used.module)
    close(predict(there, IMAGES), logits, 100 * TOLERANCE[dtype])


@on_every_backend
def test_an_amortizer_fitted_on_one_module_predicts_on_another(backend):
    from operators import K, Q

    _, _, place, dtype = backend
    fitted = ar.fit_amortizer([(place(Q), place(K))], n_slices=4, n_iter=3)
    judge = ar.fit_amortizer([(Q, K)], n_slices=4, n_iter=3)
    # weights solve normal equations, whose condition multiplies rounding
    np.testing.assert_allclose(fitted.weights, judge.weights, rtol=1e-6 if dtype == "float64" else 1e-2)
    close(judge.predict(place(Q), place(K)), judge.predict(Q, K), TOLERANCE[dtype])


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", OPERATORS)
def test_torch_half_precision_is_float32_rounded_once(name, half):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install asap-ref[peers]")
    function, arguments, settings = OPERATORS[name]
    dtype = getattr(torch, half)
    low = convert(arguments, lambda x: torch.tensor(x) if x.dtype == bool else torch.tensor(x).to(dtype))
    wide = convert(low, lambda x: x if x.dtype == torch.bool else x.float())
    for found, expected in zip(
        outputs(function(**low, **settings)), outputs(function(**wide, **settings)), strict=True
    ):
        assert found.dtype == dtype
        assert torch.equal(found, expected.to(dtype))


def test_views_of_any_layout_are_accepted():
    q = np.asfortranarray(np.random.default_rng(0).standard_normal((2, 6, 4)))
    reversed_, strided = q[:, ::-1], np.repeat(q, 2, axis=-1)[..., ::2]
    np.testing.assert_array_equal(ar.softmax_attention(strided, strided, strided), ar.softmax_attention(q, q, q))
    np.testing.assert_allclose(
        ar.sinkhorn_attention(reversed_, q, q), ar.sinkhorn_attention(q, q, q)[:, ::-1], rtol=1e-12, atol=1e-14
    )
    q.setflags(write=False)
    ar.sinkhorn_attention(q, q, q)
