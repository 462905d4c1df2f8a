"""The same code on every array module, device and dtype gives NumPy's numbers, where the input lives."""

from functools import partial

import agreement
import numpy as np
import pytest
from array_api_compat import device
from backends import BACKENDS, CASES
from operators import OPERATORS, convert, map_arrays, outputs, random_like, vjp_of

import asap_ref as ar
from asap_ref.method import attention as readable
from asap_ref.support.arrays import array_namespace, to_numpy

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


# JAX compiles each step for each shape anew, half a minute for some operators. By default it goes through one operator
# of each kind (products, sums under masks, loops, sorting, gathering and scattering), in float32, and through one in
# float64; the slow tests through all in both.
KINDS = {
    "c_transform masked",
    "plan masked",
    "sinkhorn init",
    "potentials",
    "potentials weighted",
    "query_dual",
    "softmax masked",
    "soft_sort masked",
    "layer_norm",
    "gelu",
}
IN_FLOAT64 = {"softmax masked"}
ON_JAX = [case for case in CASES if BACKENDS[case[0]].module == "jax"]


def takes_long(name, case):
    return case in ON_JAX and name not in (KINDS if case[1] == "float32" else IN_FLOAT64)


def cases(longer):
    """Every backend and dtype, those of which ``longer`` is true as slow tests."""
    return [pytest.param(c, id="-".join(c), marks=[pytest.mark.slow] if longer(c) else []) for c in CASES]


on_every_backend = pytest.mark.parametrize("backend", cases(lambda _: False), indirect=True)
with_jax_as_slow_test = pytest.mark.parametrize("backend", cases(ON_JAX.__contains__), indirect=True)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(name, *case.values, id=f"{name}-{case.id}", marks=case.marks)
        for name in OPERATORS
        for case in cases(partial(takes_long, name))
    ],
    indirect=["backend"],
)
def test_operator_and_gradient_agree_with_numpy(name, backend):
    _, xp, place, dtype = backend
    for found, expected in [pair for pairs in agreement.of_operator(name, place) for pair in pairs]:
        assert array_namespace(found) is xp and found.dtype == getattr(xp, dtype)
        assert device(found) == device(place(np.zeros(1)))  # a scalar of NumPy 2.0 has none of its own
        assert agreement.error(found, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("backend", [case for case in CASES if case not in ON_JAX], indirect=True, ids="-".join)
@pytest.mark.parametrize("name", OPERATORS)
def test_nothing_is_written_to(name, backend):
    """On JAX there is nothing to find: its arrays cannot be written to."""
    _, _, place, _ = backend
    function, arguments, settings = OPERATORS[name]
    placed = convert(arguments, place)
    before = [to_numpy(x).copy() for x in outputs(tuple(placed.values()))]
    value, vjp = vjp_of(function)(**placed, **settings)
    cotangent = map_arrays(place, random_like(map_arrays(to_numpy, value)))
    before += [to_numpy(x).copy() for x in outputs(cotangent)]
    vjp(cotangent)
    function(**placed, **settings)
    for x, y in zip([*outputs(tuple(placed.values())), *outputs(cotangent)], before, strict=True):
        np.testing.assert_array_equal(to_numpy(x), y)


@with_jax_as_slow_test
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
    expected = readable.sinkhorn_attention(q, k, v, **masks, **settings)
    placed = convert({"q": q, "k": k, "v": v, **masks}, place)
    out, vjp = ar.sinkhorn_attention_vjp(**placed, **settings)
    tolerance = {"float64": 1e-9, "float32": 2e-3}[dtype]  # scores of 500: rounding times the condition of exp
    assert agreement.error(ar.sinkhorn_attention(**placed, **settings), expected) <= tolerance
    assert agreement.error(out, expected) <= tolerance
    _, expected_vjp = readable.sinkhorn_attention_vjp(q, k, v, **masks, **settings)
    for found, e in zip(vjp(placed["v"]), expected_vjp(v), strict=True):
        assert agreement.error(found, e) <= 10 * tolerance


@with_jax_as_slow_test
@pytest.mark.parametrize("attention", agreement.ATTENTIONS)
def test_a_training_step_is_the_same_everywhere(backend, attention):
    _, _, place, dtype = backend
    gradients, parameters = agreement.of_training_step(attention, place)
    for found, expected in [*gradients, *parameters]:
        assert to_numpy(found).dtype == dtype
        assert agreement.error(found, expected) <= 10 * TOLERANCE[dtype]


@with_jax_as_slow_test
def test_train_compile_save_there_and_load_here(backend, tmp_path):
    """The whole way on one module, then the file on NumPy; and NumPy's file there: the same numbers."""
    used, _, place, dtype = backend
    for found, expected in agreement.of_files(place, used.module, tmp_path):
        assert found.dtype == dtype
        assert agreement.error(found, expected) <= 100 * TOLERANCE[dtype]  # it sorts: near ties may fall otherwise


@on_every_backend
def test_an_amortizer_fitted_on_one_module_predicts_on_another(backend):
    from operators import K, Q

    _, _, place, dtype = backend
    fitted = ar.fit_amortizer([(place(Q), place(K))], n_slices=4, n_iter=3)
    judge = ar.fit_amortizer([(Q, K)], n_slices=4, n_iter=3)
    # weights solve normal equations, whose condition multiplies rounding
    np.testing.assert_allclose(fitted.weights, judge.weights, rtol=1e-6 if dtype == "float64" else 1e-2)
    assert agreement.error(judge.predict(place(Q), place(K)), judge.predict(Q, K)) <= TOLERANCE[dtype]


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
