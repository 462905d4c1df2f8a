"""Competitors from other libraries: torch, POT and OTT-JAX. What is not installed is left out, and said.

Each dict of competitors is as in asap_ref/lab/competitors.py: prepare(q, k, v) gives a call without arguments. Data are
placed, and programs compiled, in ``prepare``; a compiled call tells its ``compile_seconds``.
"""

import math
import time
import warnings
from importlib.util import find_spec

import numpy as np

from asap_ref.fast.threads import worker_count
from asap_ref.lab.competitors import N_ITER, Competitor
from asap_ref.support.arrays import to_numpy

INSTALL = {"torch": "torch", "ot": "POT", "ott": "ott-jax"}


def missing():
    """Name the libraries that are not installed."""
    return [f"{name} (pip install {name})" for module, name in INSTALL.items() if find_spec(module) is None]


def versions():
    """Versions of those that are."""
    from importlib.metadata import version

    names = [name for module, name in INSTALL.items() if find_spec(module) is not None]
    return {name: version(name) for name in names}


def threads():
    """Give torch as many threads as our functions have, and tell: {library: threads}."""
    if find_spec("torch") is None:
        return {}
    import torch

    torch.set_num_threads(worker_count())
    return {"torch": torch.get_num_threads()}


def forward(device="cpu"):
    """Attention layers, by name."""
    found = {}
    if find_spec("torch") is not None:
        found |= {
            "torch softmax, fused (SDPA)": Competitor("softmax", _in_torch(_torch_sdpa, device)),
            "torch softmax, unfused": Competitor("softmax", _in_torch(_torch_softmax, device)),
            "torch Sinkhorn, log domain": Competitor("sinkhorn", _in_torch(torch_log_domain, device)),
            "torch Sinkhorn, scaling": Competitor("sinkhorn", _in_torch(_torch_scaling, device)),
            "torch sliced transport, 16 slices": Competitor("sliced", _in_torch(torch_sliced, device)),
        }
    if find_spec("ot") is not None and device == "cpu":
        found["POT Sinkhorn, plain"] = Competitor("sinkhorn", _pot("sinkhorn"))
        found["POT Sinkhorn, log domain"] = Competitor("sinkhorn", _pot("sinkhorn_log"))
    if find_spec("ott") is not None:
        found["OTT-JAX Sinkhorn (compiled)"] = Competitor("sinkhorn", _ott)
    return found


def training(device="cpu"):
    """Training steps: forward and automatic differentiation."""
    if find_spec("torch") is None:
        return {}
    return {
        "torch softmax, fused (SDPA)": Competitor("softmax", autograd(_torch_sdpa, device)),
        "torch Sinkhorn, log domain": Competitor("sinkhorn", autograd(torch_log_domain, device)),
        "torch Sinkhorn, scaling": Competitor("sinkhorn", autograd(_torch_scaling, device)),
    }


# --------------------------------------------------------------------------------------------------------- torch


def _placed(arrays, device):
    import torch

    threads()
    return [torch.asarray(to_numpy(x)).to(device) for x in arrays]


def _in_torch(function, device):
    def prepare(q, k, v):
        import torch

        q, k, v = _placed((q, k, v), device)

        def call():
            with torch.no_grad():
                return function(q, k, v)

        return call

    return prepare


def autograd(function, device):
    """Prepare a training step of a torch function, v being the cotangent too."""

    def prepare(q, k, v):
        q, k, v = (x.requires_grad_() for x in _placed((q, k, v), device))
        cotangent = v.detach()

        def call():
            out = function(q, k, v)
            import torch

            return (out.detach(), *torch.autograd.grad(out, (q, k, v), cotangent))

        return call

    return prepare


def _torch_sdpa(q, k, v):
    from torch.nn.functional import scaled_dot_product_attention

    return scaled_dot_product_attention(q[None], k[None], v[None])[0]


def _torch_softmax(q, k, v):
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


def torch_log_domain(q, k, v, *, n_iter=N_ITER):
    """As the Sinkformer does, 2T + 1 half steps by logsumexp; with one addition a half step instead of its three."""
    S = q @ k.mT / math.sqrt(q.shape[-1])
    f = -S.logsumexp(-1)
    for _ in range(n_iter):
        g = -(S + f[..., :, None]).logsumexp(-2)
        f = -(S + g[..., None, :]).logsumexp(-1)
    return (S + f[..., :, None] + g[..., None, :]).exp() @ v


def _torch_scaling(q, k, v):
    """Two matrix-vector products an iteration on K = softmax(S); nothing guards its range."""
    import torch

    K = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    a = torch.ones_like(K[..., :1])
    for _ in range(N_ITER):
        b = 1 / (K.mT @ a)
        a = 1 / (K @ b)
    return a * (K @ (b * v))


def torch_sliced(q, k, v, *, n_slices=16, temperature=1e-3, inverse_temperature=1.0):
    """ESPFormer: soft permutations of every slice, weights by transport cost."""
    import torch

    scale = q.shape[-1] ** -0.5
    q, k = scale * q, scale * k

    def soft_sort(x):  # (heads, slices, n) -> (heads, slices, ranks, n)
        return (-((x[..., None, :] - x.sort(-1).values[..., None]) ** 2) / temperature).softmax(-1)

    G = soft_sort(q[..., :n_slices].mT).mT @ soft_sort(k[..., :n_slices].mT)
    cost = (torch.cdist(q, k)[..., None, :, :] * G).sum((-2, -1))
    w = (-inverse_temperature * cost).softmax(-1)
    return (w[..., None, None] * G).sum(-3) @ v


# ----------------------------------------------------------------------------------------------------- POT and OTT


def _pot(method):
    def prepare(q, k, v):
        import ot

        q, k, v = (to_numpy(x) for x in (q, k, v))
        uniform = [np.full(x.shape[-2], 1 / x.shape[-2], x.dtype) for x in (q, k)]

        def plan(S):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ot.sinkhorn(*uniform, -S, 1.0, method=method, numItermax=N_ITER, stopThr=0, warn=False)

        def call():
            S = q @ k.mT / math.sqrt(q.shape[-1])
            return np.stack([len(s) * (plan(s) @ values) for s, values in zip(S, v, strict=True)])

        return call

    return prepare


def _ott(q, k, v):
    import jax
    from ott.geometry.geometry import Geometry
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    def attention(q, k, v):
        S = q @ k.T / math.sqrt(q.shape[-1])
        exactly = {
            "max_iterations": N_ITER,
            "min_iterations": N_ITER,
            "inner_iterations": N_ITER,
            "threshold": 0.0,
        }
        solved = Sinkhorn(**exactly)(LinearProblem(Geometry(cost_matrix=-S, epsilon=1.0)))
        return len(q) * (solved.matrix @ v)

    arrays = [jax.numpy.asarray(to_numpy(x)) for x in (q, k, v)]
    start = time.perf_counter()
    compiled = jax.jit(jax.vmap(attention)).lower(*arrays).compile()

    def call():
        return compiled(*arrays).block_until_ready()

    call.compile_seconds = time.perf_counter() - start
    return call
