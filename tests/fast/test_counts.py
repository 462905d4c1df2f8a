"""What a GPU would have to do: kernels launched, waits of the host, transfers; bounded, whatever the size.

This is of the array forms. CuPy takes kernels of our own for attention, whose launches are counted beside them.
"""

import numpy as np
import pytest
from counting import NAMESPACE, counted

import asap_ref as ar
from asap_ref.model.architecture import Architecture
from asap_ref.model.training import loss_and_gradients
from asap_ref.model.transformer import Transformer
from asap_ref.support import trees


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


def forward(name, **settings):
    return work(ar.Attention(name, settings), *arrays(2, 3, 16, 4))


def backward(name, **settings):
    q, k, v = arrays(2, 3, 16, 4)
    return work(lambda: ar.Attention(name, settings).vjp(q, k, v)[1](v))


def training_step(name, **settings):
    architecture = Architecture(patch=4, width=16, n_layers=2, n_heads=4)
    model = Transformer.create(architecture, ar.Attention(name, settings))
    model = Transformer(architecture, trees.place(model.params, NAMESPACE), model.attentions)
    (inputs,) = arrays(6, 8, 8, count=1)
    return work(loss_and_gradients, model, inputs, NAMESPACE.asarray(np.arange(6)))


SOFTMAX, SINKHORN, ASAP = {"name": "softmax"}, {"name": "sinkhorn", "n_iter": 20}, {"name": "asap"}
WORK = {  # what is done, and the most it may cost: launches, waits, transfers
    "softmax, forward": (forward, SOFTMAX, (9, 1, 0)),
    "Sinkhorn T = 20, forward": (forward, SINKHORN, (125, 4, 0)),  # four an iteration, a look at every eighth
    "ASAP, forward": (forward, ASAP, (50, 2, 0)),  # a second wait asks how far the prediction is off
    "softmax, forward and backward": (backward, SOFTMAX, (32, 2, 0)),
    "Sinkhorn T = 20, forward and backward": (backward, SINKHORN, (345, 5, 0)),
    "ASAP, forward and backward": (backward, ASAP, (229, 2, 0)),  # a plan is a softmax there: more, but exact
    "training step of two layers, softmax": (training_step, SOFTMAX, (380, 2, 0)),
    "training step of two layers, Sinkhorn T = 20": (training_step, SINKHORN, (1000, 8, 0)),
}


def cost(name):
    do, settings, _ = WORK[name]
    return do(**settings, **({"amortizer": amortizer()} if settings is ASAP else {}))


def table():
    """Rows (work, launches, waits, transfers), for the figure "modules"."""
    return [[name, *cost(name)] for name in WORK]


@pytest.mark.parametrize("name", WORK)
def test_few_kernels_are_launched_and_the_host_waits_rarely(name):
    found, most = cost(name), WORK[name][2]
    assert all(x <= y for x, y in zip(found, most, strict=True)), f"{found}, at most {most}"


def test_the_count_does_not_depend_on_batch_heads_tokens_or_slices():
    few, many = amortizer(2), amortizer(32)
    small, large = arrays(1, 3, 8, 4), arrays(5, 3, 64, 4)
    assert work(ar.asap_attention, *small, few) == work(ar.asap_attention, *large, many)
    assert work(ar.softmax_attention, *small) == work(ar.softmax_attention, *large)


def test_an_iteration_of_sinkhorn_is_two_products_and_two_divisions():
    (ten, _, _), (eleven, _, _) = (forward("sinkhorn", n_iter=n_iter) for n_iter in (10, 11))
    assert eleven - ten == 4
