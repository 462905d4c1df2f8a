"""Wrong calls get the promised error, whose message says what came, what was expected, and how to mend it."""

import warnings

import numpy as np
import pytest
from operators import OPERATORS, convert, outputs, vjp_of
from tallies import CALLS, refused

import asap_ref as ar
from asap_ref.support.arrays import array_module, array_namespace, logsumexp, softmax, to_numpy
from asap_ref.support.contracts import operator

S = np.zeros((2, 3, 4))
Q = np.zeros((2, 1, 3, 4))


def first_array(arguments):
    return next(name for name, value in arguments.items() if isinstance(value, np.ndarray))


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_input_is_named(name, bad):
    function, arguments, settings = OPERATORS[name]
    key = first_array(arguments)
    broken = {**arguments, key: arguments[key].copy()}
    broken[key][..., 0, 0] = bad
    if "masked" in name:
        broken |= {name: np.ones_like(x) for name, x in arguments.items() if name.endswith("mask")}
    with refused(CALLS, ValueError, match=rf"{key} contains (NaN|infinity); pass finite values"):
        function(**broken, **settings)
    with refused(CALLS, ValueError, match=f"{key} contains"):
        vjp_of(function)(**broken, **settings)


def test_a_score_of_minus_infinity_is_a_pair_that_may_not_meet():
    """It is finite where it counts: the plan is zero there. A row of them has no plan, and says so."""
    scores = np.asarray([[0.0, -np.inf], [0.0, 0.0]])
    np.testing.assert_allclose(ar.transport_plan(scores, ar.sinkhorn(scores))[0], [1, 0])
    with pytest.raises(ValueError, match="scores contains infinity"):
        ar.sinkhorn(np.full((2, 2), -np.inf))


@pytest.mark.parametrize("name", OPERATORS)
def test_integers_complex_numbers_lists_and_mixtures_are_refused(name):
    function, arguments, settings = OPERATORS[name]
    key = first_array(arguments)
    for change, message in (
        (lambda x: np.round(x).astype(int), f"{key} must be real floating point, got int64"),
        (lambda x: x.astype(complex), f"{key} must be real floating point, got complex128"),
        (lambda x: x.tolist(), f"{key} must be an array, got list"),
    ):
        with refused(CALLS, TypeError, match=message):
            function(**{**arguments, key: change(arguments[key])}, **settings)
    if sum(x.dtype != bool for x in outputs(tuple(arguments.values()))) > 1:
        with refused(CALLS, TypeError, match="must share one dtype"):
            function(**{**arguments, key: arguments[key].astype(np.float32)}, **settings)
        strict = array_module("array_api_strict")
        with refused(
            CALLS,
            TypeError,
            match=r"different modules cannot be mixed: got \['array_api_strict', 'numpy'\]",
        ):
            function(**{**arguments, key: strict.asarray(arguments[key])}, **settings)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_cotangent_of_the_wrong_shape_is_refused(name):
    function, arguments, settings = OPERATORS[name]
    value, vjp = vjp_of(function)(**arguments, **settings)
    wrong = tuple(x[:1] for x in value) if isinstance(value, tuple) else value[:1]
    with refused(CALLS, ValueError, match=r"cotangent.* must have the value's shape"):
        vjp(wrong)
    if isinstance(value, tuple):
        for other, got in ((value[:1], 1), (value[0], "ndarray")):
            with refused(
                CALLS, ValueError, match=f"must be a tuple of {len(value)} arrays, as the value, got {got}"
            ):
                vjp(other)


@pytest.mark.parametrize("name", OPERATORS)
def test_no_warning_escapes_and_read_only_input_is_accepted(name):
    function, arguments, settings = OPERATORS[name]
    huge = convert(arguments, lambda x: x.copy() if x.dtype == bool else 100 * x)  # other tests share the masks
    for x in outputs(tuple(huge.values())):
        x.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if name.startswith("plan"):  # duals that belong to other scores overflow, and say so
            with pytest.raises(FloatingPointError, match="overflows float64 although every input is finite"):
                function(**{**huge, "scores": 10 * huge["scores"]}, **settings)
        else:
            assert all(np.isfinite(x).all() for x in outputs(function(**huge, **settings)))


WRONG = [
    (lambda: ar.sinkhorn(S, epsilon=0), ValueError, "epsilon must be positive and finite, got 0"),
    (lambda: ar.sinkhorn(S, epsilon=-1.0), ValueError, "epsilon must be positive"),
    (lambda: ar.sinkhorn(S, epsilon=np.nan), ValueError, "epsilon must be positive"),
    (lambda: ar.sinkhorn(S, epsilon="1"), TypeError, "epsilon must be a number, got str"),
    (lambda: ar.sinkhorn(S, epsilon=True), TypeError, "epsilon must be a number, got bool"),
    (lambda: ar.sinkhorn(S, n_iter=-1), ValueError, "n_iter must be at least 0, got -1"),
    (lambda: ar.sinkhorn(S, n_iter=1.5), TypeError, "n_iter must be an integer, got float 1.5"),
    (lambda: ar.sinkhorn(S, n_iter=True), TypeError, "n_iter must be an integer"),
    (lambda: ar.sinkhorn(S[0, 0]), ValueError, r"scores has shape \(4,\), expected at least 2 axes \(..., n, m\)"),
    (lambda: ar.sinkhorn(S[:, :0]), ValueError, "axis n must not be empty"),
    (lambda: ar.sinkhorn(S, init=S[..., 0, :]), ValueError, r"init has shape \(2, 4\).* with n = 3 as in scores"),
    (
        lambda: ar.sinkhorn(S, query_mask=np.ones((2, 3))),
        TypeError,
        r"query_mask must be boolean .*, got float64; try query_mask != 0",
    ),
    (lambda: ar.sinkhorn(S, key_mask=np.ones((2, 3), bool)), ValueError, "with m = 4 as in scores"),
    (
        lambda: ar.sinkhorn_attention(
            np.zeros((5, 2, 3, 4)), *[np.zeros((5, 2, 3, 4))] * 2, query_mask=np.ones((5, 3), bool)
        ),
        ValueError,
        r"do not broadcast to \(5, 2\).*query_mask\[:, None, :\]",
    ),
    (lambda: ar.entropic_c_transform(S, S[..., 0], onto="rows"), ValueError, "onto must be one of 'key', 'query'"),
    (lambda: ar.entropic_c_transform(S, S[..., 0], onto="query"), ValueError, "takes a key dual of shape"),
    (lambda: ar.transport_plan(S, S), TypeError, "duals must be a tuple of 2 arrays, got ndarray"),
    (lambda: ar.transport_plan(S, (S[..., 0], S[..., 0])), ValueError, r"duals\[1\] has shape"),
    (
        lambda: ar.softmax_attention(Q, Q[..., :3], Q),
        ValueError,
        r"k has shape \(2, 1, 3, 3\).* with d = 4 as in q",
    ),
    (lambda: ar.softmax_attention(Q, Q, Q[:1]), ValueError, r"leading axes \(2, 1\) as in q"),
    (lambda: ar.softmax_attention(Q, Q, Q[..., :2, :]), ValueError, "with m = 3 as in k"),
    (lambda: array_module("tensorflow"), ValueError, "must be one of numpy, cupy, torch, jax"),
    (lambda: array_namespace(3.0), TypeError, "expected an array .*, got float"),
    (lambda: array_namespace(), TypeError, "expected at least one array, got none"),
    (lambda: array_namespace(None), TypeError, "expected at least one array, got none"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_wrong_calls(call, error, message):
    with refused(CALLS, error, match=message):
        call()


def test_arrays_on_different_devices_are_refused():
    xp = array_module("array_api_strict")
    here, there = xp.zeros((2, 3)), xp.zeros((2, 3), device=xp.Device("device1"))
    with refused(CALLS, TypeError, match="different devices cannot be mixed"):
        ar.attention_scores(here, there)


def test_a_numpy_epsilon_does_not_widen_float32():
    duals = ar.sinkhorn(S.astype(np.float32), epsilon=np.float64(0.5))
    assert duals.query.dtype == np.float32


def test_a_module_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "array_api_compat.cupy", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'asap-ref\[cuda12\]"):
        array_module("cupy")


def test_logsumexp_and_softmax_of_nothing():
    x = np.asarray([[-np.inf, -np.inf], [0.0, -np.inf], [1e4, 1e4]])
    valid = np.asarray([[False, False], [True, True], [True, True]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(logsumexp(x, axis=-1), [-np.inf, 0, 1e4 + np.log(2)])
        np.testing.assert_array_equal(softmax(x, axis=-1, valid=valid), [[0, 0], [1, 0], [0.5, 0.5]])
    with np.errstate(invalid="ignore"):  # all valid, and all -inf: there is nothing to normalise
        assert np.isnan(softmax(x, axis=-1)[0]).all()


def test_to_numpy_of_a_tensor_that_tracks_gradients():
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install asap-ref[peers]")
    np.testing.assert_array_equal(to_numpy(torch.ones(2, requires_grad=True)), [1, 1])


def test_shared_parameters_are_described_where_a_docstring_leaves_them_out():
    @operator
    def scaled(q: "... n d", *, factor=2.0, epsilon=1.0, query_mask=None):
        """Scale.

        Parameters
        ----------
        factor, epsilon
            Multiply.

        Returns
        -------
        array
        """

    described = scaled.__doc__.partition("Parameters\n----------\n")[2].partition("\n\nReturns\n")[0]
    heads = [line for line in described.splitlines() if not line.startswith(" ")]
    assert heads == ["q", "query_mask", "factor, epsilon"]  # what it says itself is not said again
