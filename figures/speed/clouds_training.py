"""An epoch of the main job, gradients by hand, beside torch autograd through the log-domain loop: the same model."""

import math
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from asap_ref import Attention, Transformer
from asap_ref.fast.threads import worker_count
from asap_ref.lab.experiments import experiment
from asap_ref.lab.machine import machine
from asap_ref.lab.stopwatch import interleaved, ratio
from asap_ref.model.training import loss_and_gradients, train
from asap_ref.support import files
from asap_ref.support.tables import markdown_table
from asap_ref.support.trees import flatten

ROUNDS = 5
OURS, TORCH = "here, by hand", "torch autograd, log domain"


def measure():
    """Train for an epoch with each in turn, after checking that both have the same loss and gradient."""
    run = experiment("clouds")
    data, settings = run.load(), replace(run.training, epochs=1)
    model = Transformer.create(run.architecture, Attention("sinkhorn", run.teacher))

    def ours():
        _, history = train(model, data.train_inputs, data.train_labels, settings, augment=run.augment, label=None)
        return np.asarray(history[-1]["loss"])

    def theirs():
        return np.asarray(epoch_of_torch(model, data, run, settings))

    torch.set_num_threads(worker_count())
    clouds = run.augment(data.train_inputs[:64], np.random.default_rng(0))
    loss, grads = loss_and_gradients(model, clouds, data.train_labels[:64])
    params = as_tensors(model)
    judged = loss_of(params, torch.tensor(clouds), torch.tensor(data.train_labels[:64]), run)
    judged.backward()
    apart = max(
        float(np.abs(gradient - params[key].grad.numpy()).max() / np.abs(gradient).max())
        for key, gradient in flatten(grads).items()
        if np.abs(gradient).max() > 1e-6  # a key's bias has none but rounding
    )
    return {
        "seconds": interleaved({OURS: ours, TORCH: theirs}, rounds=ROUNDS, budget=math.inf),
        "loss_difference": abs(float(loss) - judged.item()),
        "largest_gradient_difference": apart,
        "points": run.points,
        "clouds": len(data.train_labels),
        "batch_size": settings.batch_size,
        "n_iter": run.teacher["n_iter"],
        "threads": worker_count(),
        "machine": machine() | {"torch": torch.__version__},
    }


def as_tensors(model):
    """Parameters of a model as leaves of autograd."""
    return {key: torch.tensor(value, requires_grad=True) for key, value in flatten(model.params).items()}


def epoch_of_torch(model, data, run, settings):
    """AdamW over fresh clouds, as `train` does; return the loss of the last batch."""
    params, rng = as_tensors(model), np.random.default_rng(0)
    optimiser = torch.optim.AdamW(params.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    order = rng.permutation(len(data.train_labels))
    for start in range(0, len(order), settings.batch_size):
        picked = order[start : start + settings.batch_size]
        clouds = torch.tensor(run.augment(data.train_inputs[picked], rng))
        loss = loss_of(params, clouds, torch.tensor(data.train_labels[picked]), run)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return loss.item()


def loss_of(params, clouds, labels, run):
    """Cross-entropy of the same Transformer in torch, attention by the loop in the log domain."""
    a = run.architecture

    def linear(x, name):
        return x @ params[f"{name}/weight"] + params[f"{name}/bias"]

    def mlp(x, name):
        return linear(functional.gelu(linear(x, f"{name}/up"), approximate="tanh"), f"{name}/down")

    def norm(x, name):
        return functional.layer_norm(x, (a.width,), params[f"{name}/gain"], params[f"{name}/bias"])

    x = mlp(clouds, "embedding/vector")
    x = torch.cat([params["embedding/class_token"].expand(len(x), 1, -1), x], 1)
    for i in range(a.n_layers):
        qkv = linear(norm(x, f"block{i}/norm1"), f"block{i}/heads/qkv")
        q, k, v = qkv.unflatten(-1, (3, a.n_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = plan(q @ k.mT / math.sqrt(q.shape[-1]), **run.teacher) @ v
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"block{i}/heads/out")
        x = x + mlp(norm(x, f"block{i}/norm2"), f"block{i}/mlp")
    return functional.cross_entropy(linear(norm(x[:, 0], "norm"), "head"), labels)


def plan(S, n_iter, epsilon):
    """Sinkhorn from the softmax start, every step seen by autograd."""
    S = S / epsilon
    f = -torch.logsumexp(S, -1)
    for _ in range(n_iter):
        g = -torch.logsumexp(S + f[..., None], -2)
        f = -torch.logsumexp(S + g[..., None, :], -1)
    return torch.exp(S + f[..., None] + g[..., None, :])


def draw(record, folder):
    """Write the table."""
    table = folder / "clouds_training.md"
    times, low, high = ratio(record["seconds"][TORCH], record["seconds"][OURS])
    rows = [["an epoch", "s, median", "s, each round"]]
    for name, seconds in record["seconds"].items():
        rows.append([name, f"{np.median(seconds):.2f}", ", ".join(f"{s:.2f}" for s in seconds)])
    made_on = record["machine"]
    files.save_text(
        table,
        f"{markdown_table(rows)}\nThe epoch by hand takes {times:.1f} times less ({low:.1f} to {high:.1f} between the "
        f"quartiles of the rounds): {record['clouds']} clouds of {record['points']} points in batches of "
        f"{record['batch_size']}, T = {record['n_iter']}, float32, in turns in one process. On one batch the losses "
        f"differ by {record['loss_difference']:.1g} and no gradient by more than "
        f"{record['largest_gradient_difference']:.1g} of its largest entry. {made_on['processor']}, "
        f"threads of each: {record['threads']}, torch {made_on['torch']}, NumPy {made_on['numpy']}.\n",
    )
    return [table]
