"""The training trace and its compile result: ten steps of a very small Transformer, then the swap of its attention.

Ours runs in extended precision; the second source is torch: its layers, its AdamW, its autograd, and for attention
and features the formulas of formulas.py.
"""

from __future__ import annotations

import functools

import certificates
import formulas
import numpy as np
import torch
from arithmetic import TORCH
from cases_v1 import Spec
from inputs_v1 import grid, theta
from our_values import in_long
from torch.nn import functional

from asap_ref.method import attention as readable
from asap_ref.model.architecture import Architecture
from asap_ref.model.transformer import initialise
from asap_ref.oracle import reference
from asap_ref.support.trees import flatten

ARCHITECTURE = Architecture(image=(4, 4), patch=2, n_classes=3, width=8, n_layers=2, n_heads=2)
MODEL = dict(image_size=4, patch=2, n_heads=2, n_iter=5, epsilon=1.0)
TRAINING = dict(weight_decay=0.125, betas=[0.875, 0.96875], adam_epsilon=2.0**-20)
STEPS, BATCH = 10, 4


class Readable:
    """An attention of a model, in its plainest form and with the settings of `Attention`."""

    def __init__(self, name, settings):
        self.settings = settings
        self.forward = functools.partial(getattr(readable, f"{name}_attention"), **settings)
        self.vjp = functools.partial(getattr(readable, f"{name}_attention_vjp"), **settings)

    def __call__(self, q, k, v, **masks):
        return self.forward(q, k, v, **masks)


def trace_spec():
    rng = np.random.default_rng(6)
    prototypes = grid(rng, 3, 4, 4)
    labels = rng.integers(0, 3, (STEPS, BATCH))
    inputs = {
        "images": prototypes[labels] + grid(rng, STEPS, BATCH, 4, 4, spread=0.5),
        "labels": labels,
        "learning_rates": np.asarray([1, 2, 4, 4, 4, 3, 3, 2, 2, 1]) / 256,
        **flatten(initialise(ARCHITECTURE, seed=6)),
    }
    return Spec(
        "training_trace/ten_steps",
        "ten steps of AdamW on a Transformer of two layers, attention by five Sinkhorn iterations",
        "optimizer transformer gradient_through_both_sides",
        inputs,
        MODEL | TRAINING,
        "all",
    )


def compile_spec(trained):
    rng = np.random.default_rng(7)
    images = np.concatenate([grid(rng, 12, 4, 4)])
    inputs = {
        "images": images,
        "directions": theta(4, 3),
        **{key: x.astype(np.float32) for key, x in trained.items()},
    }
    return Spec(
        "compile_model/after_ten_steps",
        "the model of training_trace after its ten steps, compiled on twelve images",
        "compile transformer normal_equations",
        inputs,
        MODEL | dict(ridge=2.0**-10, cumulants=True),
        "all",
    )


# ---------------------------------------------------------------------------------------------------------- ours


def our_trace(spec):
    """Outputs and intermediates of the trace, and the parameters after it."""
    steps = []
    losses, norms = reference.training_trace(
        **in_long(spec.inputs), **spec.arguments, attention=Readable, on_step=lambda *step: steps.append(step)
    )
    first = {f"first_gradient/{key}": g for key, g in flatten(steps[0][0]).items()}
    return {"losses": losses, "gradient_norms": norms}, first, flatten(steps[-1][1])


def our_compilation(spec):
    """Weights of each layer and head, and the logits before and after; weights at 50 digits, as LAPACK's vary."""

    def fit(q, k, directions, **settings):
        inputs = {
            name: np.asarray(x, dtype=np.float64) for name, x in (("q", q), ("k", k), ("directions", directions))
        }
        weights, r_squared = certificates.ridge_at_fifty_digits(inputs, settings)
        return weights.astype(q.dtype), r_squared

    found = reference.compile_model(**in_long(spec.inputs), **spec.arguments, attention=Readable, fit=fit)
    return dict(zip(("weights", "teacher_logits", "compiled_logits"), found, strict=True))


# ---------------------------------------------------------------------------------------------------- second source


def torch_parameters(spec):
    tensors = {key: torch.tensor(x, dtype=torch.float64) for key, x in spec.inputs.items() if "/" in key}
    return {key: x.requires_grad_() for key, x in tensors.items()}


def logits(p, images, attend):
    """The Transformer by torch's own layers; ``attend(layer, q, k, v)`` on (B, H, n, d)."""
    size = MODEL["patch"]
    x = functional.unfold(images[:, None], size, stride=size).mT @ p["embedding/patch/weight"]
    x = x + p["embedding/patch/bias"]
    x = torch.cat([p["embedding/class_token"].expand(len(x), 1, -1), x], 1) + p["embedding/position"]
    w = x.shape[-1]
    for i in range(ARCHITECTURE.n_layers):
        b = {key.removeprefix(f"block{i}/"): value for key, value in p.items() if key.startswith(f"block{i}/")}
        h = functional.layer_norm(x, (w,), b["norm1/gain"], b["norm1/bias"])
        h = functional.linear(h, b["heads/qkv/weight"].T, b["heads/qkv/bias"])
        q, k, v = (t.unflatten(-1, (MODEL["n_heads"], -1)).transpose(1, 2) for t in h.chunk(3, -1))
        h = attend(i, q, k, v).transpose(1, 2).flatten(2)
        x = x + functional.linear(h, b["heads/out/weight"].T, b["heads/out/bias"])
        h = functional.layer_norm(x, (w,), b["norm2/gain"], b["norm2/bias"])
        h = functional.gelu(functional.linear(h, b["mlp/up/weight"].T, b["mlp/up/bias"]), approximate="tanh")
        x = x + functional.linear(h, b["mlp/down/weight"].T, b["mlp/down/bias"])
    x = functional.layer_norm(x[:, 0], (w,), p["norm/gain"], p["norm/bias"])
    return functional.linear(x, p["head/weight"].T, p["head/bias"])


def each_problem(attend):
    """Attention of (B, H, n, d) by a formula of one problem."""

    def batched(layer, q, k, v):
        return torch.stack(
            [
                torch.stack([attend(layer, h, q[b, h], k[b, h], v[b, h]) for h in range(q.shape[1])])
                for b in range(q.shape[0])
            ]
        )

    return batched


TEACHER = each_problem(
    lambda layer, h, q, k, v: formulas.sinkhorn_attention(
        TORCH, q, k, v, n_iter=MODEL["n_iter"], epsilon=MODEL["epsilon"]
    )[0]
)


def trace_by_torch(spec):
    p, a = torch_parameters(spec), spec.arguments
    groups = [
        {"params": [x for x in p.values() if x.ndim == 2], "weight_decay": a["weight_decay"]},
        {"params": [x for x in p.values() if x.ndim != 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=tuple(a["betas"]), eps=a["adam_epsilon"])
    losses, norms = [], []
    batches = zip(*(spec.inputs[name] for name in ("images", "labels", "learning_rates")), strict=True)
    for images, labels, rate in batches:
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        optimizer.zero_grad()
        found = logits(p, torch.tensor(images, dtype=torch.float64), TEACHER)
        loss = functional.cross_entropy(found, torch.tensor(labels))
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.sqrt(sum((x.grad**2).sum() for x in p.values())).item())
        optimizer.step()
    return {"losses": losses, "gradient_norms": norms}


def compilation_by_torch(spec):
    p, a = {key: x.detach() for key, x in torch_parameters(spec).items()}, spec.arguments
    images, directions = (
        torch.tensor(spec.inputs[name], dtype=torch.float64) for name in ("images", "directions")
    )
    calls = []

    def recorded(layer, q, k, v):
        calls.append((q, k))
        return TEACHER(layer, q, k, v)

    teacher = logits(p, images, recorded)
    settings = {key: a[key] for key in ("n_iter", "epsilon", "ridge", "cumulants")}
    weights = [
        certificates.least_squares({"q": q.numpy(), "k": k.numpy(), "directions": directions.numpy()}, settings)
        for q, k in calls
    ]
    tensors = [torch.tensor(w) for w in weights]
    compiled = each_problem(
        lambda layer, h, q, k, v: formulas.asap_attention(
            TORCH, q, k, v, directions, tensors[layer][h], cumulants=a["cumulants"], epsilon=a["epsilon"], refine=0
        )[0]
    )
    return {"weights": weights, "teacher_logits": teacher, "compiled_logits": logits(p, images, compiled)}
