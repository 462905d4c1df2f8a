"""What an array module must agree on with NumPy in float64: pairs (found, expected), for the tests and the table.

``place`` brings a NumPy array to the module (backends.py).
"""

import numpy as np
from operators import OPERATORS, convert, map_arrays, outputs, random_like, vjp_of

import asap_ref as ar
from asap_ref.model.architecture import Architecture
from asap_ref.model.compilation import compile_model
from asap_ref.model.optimiser import TrainingSettings, adamw, initial_moments
from asap_ref.model.training import loss_and_gradients, predict, train
from asap_ref.model.transformer import Transformer
from asap_ref.support import trees
from asap_ref.support.arrays import to_numpy

ARCHITECTURE = Architecture(patch=4, width=16, n_layers=1, n_heads=4)
IMAGES = np.random.default_rng(0).standard_normal((12, 8, 8))
LABELS = np.arange(12) % 10
ATTENTIONS = {"softmax": ar.Attention("softmax"), "sinkhorn": ar.Attention("sinkhorn", {"n_iter": 4})}


def error(found, expected):
    """Largest difference, relative to the largest entry (or to 1, if that is smaller)."""
    found, expected = to_numpy(found), to_numpy(expected)
    return float(np.abs(found - expected).max(initial=0) / max(1, np.abs(expected).max(initial=0)))


def of_operator(name, place):
    """(pairs of values, pairs of gradients) of an operator of the table."""
    function, arguments, settings = OPERATORS[name]
    expected, expected_vjp = vjp_of(function)(**arguments, **settings)
    cotangent = random_like(expected)
    placed = convert(arguments, place)
    value, vjp = vjp_of(function)(**placed, **settings)
    gradients = vjp(map_arrays(place, cotangent))
    return (
        [*_pairs(value, expected), *_pairs(function(**placed, **settings), expected)],
        _pairs(gradients, expected_vjp(cotangent)),
    )


def _pairs(found, expected):
    return list(zip(outputs(found), outputs(expected), strict=True))


def model_on(place, attention):
    """Make a small model there, the same numbers everywhere."""
    model = Transformer.create(ARCHITECTURE, ATTENTIONS[attention], dtype=np.float64)
    return Transformer(ARCHITECTURE, trees.tree_map(place, model.params), model.attentions)


def of_training_step(attention, place):
    """Pairs of loss and gradients, and pairs of the parameters after a step of AdamW."""
    steps = []
    for put in (place, lambda x: x):
        model = model_on(put, attention)
        loss, gradients = loss_and_gradients(model, put(IMAGES), put(LABELS))
        params, _ = adamw(model.params, gradients, initial_moments(model.params), 1, 1e-2, weight_decay=0.1)
        steps.append((loss, *map(trees.leaves, (gradients, params))))
    (loss, gradients, params), (expected_loss, expected_gradients, expected_params) = steps
    pairs = [(loss, expected_loss), *zip(gradients, expected_gradients, strict=True)]
    # AdamW divides by the gradient's size: where that is only rounding, its first step may be of either sign
    clear = [np.abs(g) > 1e-2 * np.abs(g).max() for g in expected_gradients]
    moved = [(to_numpy(p)[c], e[c]) for p, e, c in zip(params, expected_params, clear, strict=True)]
    return pairs, moved


def of_files(place, module, folder):
    """Train, compile and save there, load on NumPy; save that and load it there: pairs of logits."""
    settings = TrainingSettings(epochs=1, batch_size=12, learning_rate=1e-3)
    trained, _ = train(model_on(place, "sinkhorn"), IMAGES, LABELS, settings)
    compiled, _ = compile_model(trained, [IMAGES], n_slices=4, candidates=None, moments=0)
    compiled.save(folder / "there.npz")
    here = Transformer.load(folder / "there.npz")
    here.save(folder / "here.npz")
    there = Transformer.load(folder / "here.npz", backend=module)
    return [(predict(model, IMAGES), predict(compiled, IMAGES)) for model in (here, there)]
