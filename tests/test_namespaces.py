"""The same operator on every array module, device and dtype gives NumPy's numbers, where the input lives."""

import numpy as np
import pytest
from operators import OPERATORS, convert, outputs, random_like, vjp_of

import asap_ref as ar
from asap_ref.arrays import array_module, array_namespace, to_numpy

BACKENDS = ["numpy", "array_api_strict", "array_api_strict device1", "torch", "jax", "cupy"]


def place_on(backend, dtype):
    """A function that moves a NumPy array there, in that dtype unless it is a mask; or skip."""
    name, _, device = backend.partition(" ")
    if name == "cupy":
        cupy = pytest.importorskip("cupy", reason="CuPy is not installed: pip install asap-ref[cuda12]")
        if not cupy.is_available():
            pytest.skip("no CUDA device was found")
    pytest.importorskip(name, reason=f"{name} is not installed")
    xp = array_module(name)
    where = {}
    if device:
        where["device"] = xp.Device(device)
    if name == "jax":
        import jax

        if dtype == "float64" and not jax.config.jax_enable_x64:
            jax.config.update("jax_enable_x64", True)  # float64 is opt-in there

    def place(x):
        kind = xp.bool if x.dtype == bool else getattr(xp, dtype)
        return xp.asarray(np.asarray(x).copy(), dtype=kind, **where)

    return xp, place


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_and_gradient_agree_with_numpy(name, backend, dtype):
    function, arguments, settings = OPERATORS[name]
    xp, place = place_on(backend, dtype)
    expected, expected_vjp = vjp_of(function)(**arguments, **settings)
    placed = convert(arguments, place)
    before = [to_numpy(x).copy() for x in outputs(tuple(placed.values()))]

    value = function(**placed, **settings)
    same, vjp = vjp_of(function)(**placed, **settings)
    cotangent = random_like(expected)
    gradients = vjp(
        convert({"c": cotangent}, place)["c"]
        if not isinstance(cotangent, tuple)
        else type(cotangent)(*map(place, cotangent))
        if isinstance(cotangent, ar.Duals)
        else tuple(map(place, cotangent))
    )

    # sums in another order: a few units in the last place of the largest entry, more through twelve half steps
    tolerance = 1e-12 if dtype == "float64" else 2e-5
    first = outputs(tuple(placed.values()))[0]
    for found, e in zip(outputs((value, gradients)), outputs((expected, expected_vjp(cotangent))), strict=True):
        assert array_namespace(found) is xp or array_namespace(found).__name__ == xp.__name__
        assert found.dtype == getattr(xp, dtype)
        assert found.device == first.device
        np.testing.assert_allclose(to_numpy(found), e, rtol=0, atol=tolerance * max(1, np.abs(e).max()))
    for x, y in zip(outputs(value), outputs(same), strict=True):  # the fast forms add in another order
        np.testing.assert_allclose(
            to_numpy(x), to_numpy(y), rtol=0, atol=tolerance * max(1, np.abs(to_numpy(y)).max())
        )
    for x, y in zip(outputs(tuple(placed.values())), before, strict=True):
        np.testing.assert_array_equal(to_numpy(x), y)  # nothing was written to


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


@pytest.mark.parametrize("backend", ["array_api_strict", "torch", "jax"])
def test_an_amortizer_fitted_on_one_module_predicts_on_another(backend):
    from operators import K, Q

    _, place = place_on(backend, "float64")
    fitted = ar.fit_amortizer([(place(Q), place(K))], n_slices=4, n_iter=3)
    judge = ar.fit_amortizer([(Q, K)], n_slices=4, n_iter=3)
    np.testing.assert_allclose(fitted.weights, judge.weights, rtol=1e-6)
    np.testing.assert_allclose(to_numpy(judge.predict(place(Q), place(K))), judge.predict(Q, K), atol=1e-12)


def test_views_of_any_layout_are_accepted():
    q = np.asfortranarray(np.random.default_rng(0).standard_normal((2, 6, 4)))
    reversed_, strided = q[:, ::-1], np.repeat(q, 2, axis=-1)[..., ::2]
    np.testing.assert_array_equal(ar.softmax_attention(strided, strided, strided), ar.softmax_attention(q, q, q))
    np.testing.assert_allclose(
        ar.sinkhorn_attention(reversed_, q, q), ar.sinkhorn_attention(q, q, q)[:, ::-1], rtol=1e-12, atol=1e-14
    )
    q.setflags(write=False)
    ar.sinkhorn_attention(q, q, q)
