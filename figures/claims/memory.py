"""What a training step takes in memory, of one attention or of the digits model, each in a process of its own.

The allocator of the C library is left as people have it, with the blocks that it keeps.
"""

from functools import partial

import numpy as np

from asap_ref import Attention
from asap_ref.lab import gallery
from asap_ref.lab.experiments import experiment
from asap_ref.lab.stopwatch import peak_memory
from asap_ref.model.compilation import compile_model
from asap_ref.model.training import loss_and_gradients
from asap_ref.model.transformer import Transformer


def of_layer(**case):
    """{"bytes", "seconds"} of a training step of one attention; what the case is, `step_of_layer` says."""
    return peak_memory(step_of_layer, exact=False, **case)


def of_model(mechanism):
    """The same of a training step of the digits experiment, or of compiling its model (``"asap"``)."""
    return peak_memory(step_of_model, exact=False, mechanism=mechanism)


def step_of_layer(mechanism, form, n, slices, problems, n_iter):
    """(warm-up, work) of a training step: ours, or as the published codes do it, by torch's autograd.

    float32, n tokens, as many slices as the head has dimensions.
    """
    of_torch = None if form != "torch" else published(mechanism, slices, n_iter)
    settings = {"sinkhorn": {"n_iter": n_iter}, "sliced, one at a time": {"slices_at_once": 1}}

    def at(n, problems):
        q, k, v, d_out = np.random.default_rng(0).standard_normal((4, problems, n, slices)).astype(np.float32)
        if of_torch is not None:
            return of_torch(q, k, v)
        attention = Attention(mechanism.split(",")[0], settings.get(mechanism, {}))
        return lambda: attention.vjp(q, k, v)[1](d_out)

    return at(8, 2), at(n, problems)


def published(mechanism, slices, n_iter):
    """Autograd through the log-domain loop, or through the soft sorts."""
    peers = gallery.load("peers")
    function = {
        "sinkhorn": partial(peers.torch_log_domain, n_iter=n_iter),
        "sliced": partial(peers.torch_sliced, n_slices=slices),
    }
    return peers.autograd(function[mechanism], "cpu")


def step_of_model(mechanism):
    """(warm-up, work) of a training step of the digits model on a batch, or of compiling it."""
    run = experiment("digits")
    data, size = run.load(), run.training.batch_size
    name = "sinkhorn" if mechanism == "asap" else mechanism
    model = Transformer.create(run.architecture, Attention(name, run.teacher if name == "sinkhorn" else {}))
    batches = [data.train_inputs[i : i + size] for i in range(0, len(data.train_inputs), size)]

    def step(count):
        return loss_and_gradients(model, model.place(data.train_inputs[:count]), data.train_labels[:count])

    if mechanism == "asap":
        compiled = partial(compile_model, model, **run.compilation)
        return partial(compiled, [batches[0][:2]]), partial(compiled, batches)
    return partial(step, 2), partial(step, size)
