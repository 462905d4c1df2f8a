"""Attention on a GPU, CuPy beside torch on the same card: what is small is bound by launches, not by arithmetic."""

import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
from peers import torch_log_domain

import asap_ref as ar
from asap_ref.fast.kernels.attention import LAUNCH_BOUND
from asap_ref.fast.kernels.build import longest_slice
from asap_ref.fast.prediction import predicted_dual
from asap_ref.lab.machine import card
from asap_ref.lab.nvrtc import CARDS
from asap_ref.method import attention as readable
from asap_ref.support import files, presentation
from asap_ref.support.tables import markdown_table

SIZES = (64, 256, 1024, 4096)
HEADS, D, T, SLICES, ROUNDS = 8, 64, 20, 16, 11
ROWS = {  # key in the record: (label, colour, line)
    "softmax": ("softmax", "softmax", "-"),
    "sinkhorn": (f"Sinkhorn, T = {T}", "sinkhorn", "-"),
    "sinkhorn, log domain": (f"Sinkhorn, T = {T}, log domain", "light", "-"),
    "asap": (f"ASAP, {SLICES} slices", "asap", "-"),
    "asap, prediction alone": ("of it, the prediction", "warm", "-"),
    "torch softmax, fused": ("torch softmax, fused", "softmax", "--"),
    "torch softmax, unfused": ("torch softmax, unfused", "black", "--"),
    "torch sinkhorn, log domain": (f"torch Sinkhorn, T = {T}, log domain", "light", "--"),
    "softmax, forward and backward": ("softmax, forward and backward", "softmax", None),
    "sinkhorn, forward and backward": (f"Sinkhorn, T = {T}, forward and backward", "sinkhorn", None),
    "asap, forward and backward": (f"ASAP, {SLICES} slices, forward and backward", "asap", None),
    "torch softmax, fused, forward and backward": ("torch softmax, fused, forward and backward", "softmax", None),
    "torch sinkhorn, log domain, forward and backward": (
        f"torch Sinkhorn, T = {T}, log domain, forward and backward",
        "light",
        None,
    ),
}


def measure():
    """Time everything at every size, CuPy and torch in one process; needs both, and a CUDA device."""
    import cupy
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False  # CuPy's products are in float32
    rng = np.random.default_rng(0)
    amortizer = ar.fit_amortizer(
        [rng.standard_normal((2, 4, HEADS, 64, D)).astype("f4")], n_slices=SLICES, n_iter=T
    )
    times = {}
    for n in SIZES:
        host = (1.5 * rng.standard_normal((3, 1, HEADS, n, D))).astype("f4")
        ours = [cupy.asarray(x) for x in host]
        theirs = [torch.tensor(x, device="cuda") for x in host]
        times[n] = _times(ours, theirs, amortizer)
    versions = {"cupy": cupy.__version__, "torch": torch.__version__, "numpy": np.__version__}
    return {"card": card(), "versions": versions, "ms": times}


def _times(ours, theirs, amortizer):
    """Median milliseconds of each row of the table."""
    import cupy
    import torch

    def step(function_vjp, *args, **settings):
        out, vjp = function_vjp(*ours, *args, **settings)
        return out, vjp(ours[2])

    def torch_step(function):
        out = function(*leaves)
        return out, torch.autograd.grad(out, leaves, theirs[2])

    q, k, v = theirs
    leaves = [x.clone().requires_grad_() for x in theirs]
    torch_softmax = torch.nn.functional.scaled_dot_product_attention
    torch_sinkhorn = partial(torch_log_domain, n_iter=T)
    work = {
        "softmax": lambda: ar.softmax_attention(*ours),
        "sinkhorn": lambda: ar.sinkhorn_attention(*ours, n_iter=T),
        "sinkhorn, log domain": lambda: readable.sinkhorn_attention(*ours, n_iter=T),
        "asap": lambda: ar.asap_attention(*ours, amortizer),
        "asap, prediction alone": lambda: predicted_dual(*ours[:2], amortizer),
        "softmax, forward and backward": lambda: step(ar.softmax_attention_vjp),
        "sinkhorn, forward and backward": lambda: step(ar.sinkhorn_attention_vjp, n_iter=T),
        "asap, forward and backward": lambda: step(ar.asap_attention_vjp, amortizer),
        "torch softmax, fused": lambda: torch_softmax(q, k, v),
        "torch softmax, unfused": lambda: torch.softmax(q @ k.mT / D**0.5, -1) @ v,
        "torch sinkhorn, log domain": lambda: torch_sinkhorn(q, k, v),
        "torch softmax, fused, forward and backward": lambda: torch_step(torch_softmax),
        "torch sinkhorn, log domain, forward and backward": lambda: torch_step(torch_sinkhorn),
    }
    medians = {}
    for name, function in work.items():
        wait = torch.cuda.synchronize if name.startswith("torch") else cupy.cuda.Device().synchronize
        for _ in range(3):
            function()
        seconds = []
        for _ in range(ROUNDS):
            wait()
            start = time.perf_counter()
            function()
            wait()
            seconds.append(time.perf_counter() - start)
        medians[name] = 1e3 * statistics.median(seconds)
    return medians


def draw(record, folder):
    """Write the table and the picture of time against n."""
    sizes = [int(n) for n in record["ms"]]
    lines = [["attention, milliseconds", *(f"n = {n}" for n in sizes)]]
    for key, (label, _, _) in ROWS.items():
        lines.append([label, *(f"{record['ms'][str(n)][key]:.2f}" for n in sizes)])
    versions = record["versions"]
    text = markdown_table(lines) + (
        f"\n{HEADS} heads x n x {D}, float32, one sequence; {record['card']}, CuPy {versions['cupy']}, torch "
        f"{versions['torch']}, NumPy {versions['numpy']}; medians of {ROUNDS} rounds, the host waiting for the device "
        f"around each. Unless it says torch, it is this package on CuPy.\n\n"
        "These times are of the array forms, the only ones when they were measured: about 50 launches for an ASAP "
        "forward pass and above 100 for Sinkhorn ([counted](../tests_quality/modules.md)), and up to n = 1024 that is "
        "where the time went: 16 times the tokens, and ASAP takes "
        f"{record['ms']['1024']['asap'] / record['ms']['64']['asap']:.1f} times as long. The [CUDA kernels]"
        "(../../asap_ref/fast/kernels/__init__.py), which CuPy arrays now take, make 7 launches for ASAP, 5 where "
        f"slices are its only features (up to {longest_slice('float32', CARDS['sm_90']):,} tokens in float32 on this "
        "card; longer ones are [predicted in the array form](kernels.md)), one for softmax, and 2T + 1 for Sinkhorn, "
        f"which beyond {LAUNCH_BOUND:,} scores (heads x n x m) takes the array form as long as there is room for it. "
        "There is no wait between them; tests count them. softmax_attention_vjp and sinkhorn_attention_vjp are "
        "kernels, forward and backward; asap_attention_vjp is the array form. No card has run the kernels yet: their "
        "times here are outstanding, and [kernels.md](kernels.md) has what the "
        "compiler lets one estimate.\n"
    )
    table = Path(folder) / "gpu.md"
    files.save_text(table, text)

    fig, axis = presentation.subplots(figsize=(8.0, 4.2))
    for key, (label, colour, line) in ROWS.items():
        if line:
            ms = [record["ms"][str(n)][key] for n in sizes]
            axis.plot(sizes, ms, line, marker="o", ms=4, color=presentation.COLOURS[colour], label=label)
    axis.set(
        xscale="log", yscale="log", xlabel="tokens n", ylabel="milliseconds a forward pass", title=record["card"]
    )
    axis.set_xticks(sizes, [str(n) for n in sizes], minor=False)
    axis.minorticks_off()
    fig.legend(loc="outside right center", fontsize=8)
    return [table, *presentation.save(fig, Path(folder) / "gpu")]
