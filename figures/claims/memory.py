"""Peak memory and seconds of one piece of work, in a process of its own.

The process does the work once at a small size (libraries set up their buffers), resets the high-water mark of its
resident set, and does it once in earnest. Linux only.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def of_layer(mechanism, form, n, slices, problems, n_iter=20):
    """{"bytes", "seconds"} of a training step of one attention, float32, head dimension L."""
    return _in_a_process("layer", mechanism, form, n, slices, problems, n_iter)


def of_model(mechanism):
    """The same of a training step of the digits experiment, or of compiling its model (``"asap"``)."""
    return _in_a_process("model", mechanism)


def _in_a_process(*arguments):
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------------- in the process


def _layer(mechanism, form, n, slices, problems, n_iter):
    """(work, warm-up) of a training step."""

    def at(n, problems):
        q, k, v, d_out = np.random.default_rng(0).standard_normal((4, problems, n, slices)).astype(np.float32)
        if form == "torch":
            return lambda: _torch_step(mechanism, int(n_iter), q, k, v, d_out)
        from asap_ref import Attention

        settings = {"sinkhorn": {"n_iter": int(n_iter)}, "sliced, one at a time": {"slices_at_once": 1}}
        attention = Attention(mechanism.split(",")[0], settings.get(mechanism, {}))

        def step():
            _, vjp = attention.vjp(q, k, v)
            vjp(d_out)

        return step

    return at(n, problems), at(8, 2)


def _torch_step(mechanism, n_iter, q, k, v, d_out):
    """As the published codes do it: autograd through the log-domain loop, and through the soft sorts."""
    import torch

    q, k, v = (torch.tensor(x, requires_grad=True) for x in (q, k, v))
    if mechanism == "sinkhorn":
        S = q @ k.mT / q.shape[-1] ** 0.5
        f = -torch.logsumexp(S, -1, keepdim=True)
        for _ in range(n_iter):
            g = -torch.logsumexp(S + f, -2, keepdim=True)
            f = -torch.logsumexp(S + g, -1, keepdim=True)
        P = torch.exp(S + f + g)
    else:
        x, y = (z.mT / q.shape[-1] ** 0.5 for z in (q, k))  # (problems, L, n)
        A, B = (
            torch.softmax(-((z[..., None, :] - torch.sort(z, -1)[0][..., :, None]) ** 2) / 1e-3, -1)
            for z in (x, y)
        )
        G = A.mT @ B  # (problems, L, n, n)
        D = torch.cdist(x.mT, y.mT)
        w = torch.softmax(-(D[:, None] * G).sum((-1, -2)), -1)
        P = (w[..., None, None] * G).sum(1)
    (P @ v).backward(torch.tensor(d_out))


def _model(mechanism):
    from asap_ref.lab.experiments import experiment
    from asap_ref.model.compilation import compile_model
    from asap_ref.model.mechanism import Attention
    from asap_ref.model.training import loss_and_gradients
    from asap_ref.model.transformer import Transformer

    run = experiment("digits")
    data, size = run.load(), run.training.batch_size
    name = "sinkhorn" if mechanism == "asap" else mechanism
    attention = Attention(name, run.teacher if name == "sinkhorn" else {})
    model = Transformer.create(run.architecture, attention)
    batches = [data.train_inputs[i : i + size] for i in range(0, len(data.train_inputs), size)]

    def step(images, labels):
        loss_and_gradients(model, model.place(images), labels)

    if mechanism == "asap":
        return lambda: compile_model(model, batches, **run.compilation), lambda: compile_model(
            model, [batches[0][:2]], **run.compilation
        )
    return lambda: step(batches[0], data.train_labels[:size]), lambda: step(batches[0][:2], data.train_labels[:2])


def _status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def main(kind, *arguments):
    """Do the work and print what it took."""
    if kind == "layer":
        mechanism, form, *sizes = arguments
        work, warm_up = _layer(mechanism, form, *map(int, sizes))
    else:
        work, warm_up = _model(*arguments)
    warm_up()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = _status("VmRSS")
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    peak = _status("VmHWM") - before
    print(json.dumps({"bytes": peak, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
