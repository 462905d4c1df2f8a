"""What a GPU would have to do: kernels launched, waits of the host, transfers; bounded, whatever the size."""

import numpy as np
import pytest
from counting import NAMESPACE, counted

import asap_ref as ar
from asap_ref import parameters
from asap_ref.training import loss_and_gradients
from asap_ref.transformer import Architecture, Transformer


def arrays(*shape, count=3):
    rng = np.random.default_rng(0)
    return [NAMESPACE.asarray(rng.standard_normal(shape).astype(np.float32)) for _ in range(count)]


def amortizer(n_slices=8):
    q, k = np.random.default_rng(0).standard_normal((2, 4, 3, 8, 4))
    return ar.fit_amortizer([(q, k)], n_slices=n_slices, n_iter=5)


def work(function, *args, **settings):
    """(launches, waits, transfers) of a call that is not the first: constants are then on the device."""
    function(*args, **settings)
    with counted() as found:
        function(*args, **settings)
    return found["launches"], found["waits"], found["transfers"]


def bounded(found, most):
    return all(x <= y for x, y in zip(found, most, strict=True))


@pytest.mark.parametrize(
    ("function", "settings", "most"),
    [
        (ar.softmax_attention, {}, (14, 1, 0)),
        (ar.sinkhorn_attention, {"n_iter": 5}, (55, 2, 0)),
        (
            ar.sinkhorn_attention,
            {"n_iter": 20},
            (135, 4, 0),
        ),  # five launches an iteration and a look at every eighth
        (ar.asap_attention, {"amortizer": amortizer()}, (80, 1, 0)),
    ],
)
def test_a_forward_pass_launches_few_kernels_and_waits_rarely(function, settings, most):
    assert bounded(work(function, *arrays(2, 3, 16, 4), **settings), most)


def test_the_count_does_not_depend_on_batch_heads_tokens_or_slices():
    few, many = amortizer(2), amortizer(32)
    small, large = arrays(1, 3, 8, 4), arrays(5, 3, 64, 4)
    assert work(ar.asap_attention, *small, few) == work(ar.asap_attention, *large, many)
    assert work(ar.softmax_attention, *small) == work(ar.softmax_attention, *large)


def test_an_iteration_of_sinkhorn_is_two_products_and_two_divisions():
    q, k, v = arrays(2, 3, 16, 4)
    ten, eleven = (work(ar.sinkhorn_attention, q, k, v, n_iter=n_iter)[0] for n_iter in (10, 11))
    assert eleven - ten <= 5


def test_a_backward_pass_waits_once_more():
    q, k, v = arrays(2, 3, 16, 4)
    for function, settings in (
        (ar.softmax_attention_vjp, {}),
        (ar.asap_attention_vjp, {"amortizer": amortizer()}),
    ):

        def both(function=function, settings=settings):
            return function(q, k, v, **settings)[1](v)

        assert bounded(work(both), (220, 2, 0))


def test_a_training_step_keeps_everything_on_the_device():
    architecture = Architecture(patch=4, width=16, n_layers=2, n_heads=4)
    sinkhorn = ar.Attention("sinkhorn", {"n_iter": 8})
    for attention, most in ((ar.Attention("softmax"), (400, 2, 0)), (sinkhorn, (640, 4, 0))):
        model = Transformer.create(architecture, attention)
        model = Transformer(architecture, parameters.place(model.params, NAMESPACE), model.attentions)
        (inputs,) = arrays(6, 8, 8, count=1)
        labels = NAMESPACE.asarray(np.arange(6))
        assert bounded(work(loss_and_gradients, model, inputs, labels), most)
