"""Kill training runs at random moments and go on with them: ``python kills.py FOLDER``, one JSON line a kill.

The runs are forks of this process, so that a run is a second of training and not of imports. An epoch is one
small step, so that much of the time goes into writing checkpoints: there a kill is most dangerous.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

from asap_ref import Attention
from asap_ref.model.architecture import Architecture
from asap_ref.model.optimiser import TrainingSettings
from asap_ref.model.training import train
from asap_ref.model.transformer import Transformer
from asap_ref.support import files
from asap_ref.support.trees import leaves

SETTINGS = TrainingSettings(epochs=60, batch_size=16, learning_rate=1e-2)
ARCHITECTURE = Architecture(patch=4, width=16, n_layers=1, n_heads=4)


def run(checkpoint):
    """Train on sixteen images, from the checkpoint if there is one."""
    rng = np.random.default_rng(0)
    inputs, labels = rng.standard_normal((16, 8, 8)).astype(np.float32), rng.integers(0, 10, 16)
    model = Transformer.create(ARCHITECTURE, Attention("sinkhorn", {"n_iter": 3}))
    return train(model, inputs, labels, SETTINGS, checkpoint=checkpoint, resume=True, label="kills")


def forked(work):
    """Run work in a child process and return its id."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
        os._exit(0)
    return child


def killed_after(seconds, work):
    """Run work in a child, kill it after so long, and say whether that was in time."""
    child = forked(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def suicide(*_):
    """End this process as a kill does: nothing is flushed, no finally runs."""
    os.kill(os.getpid(), signal.SIGKILL)


def dies_writing(moment, checkpoint):
    """Work that kills itself at its tenth checkpoint: half way through it, before the move, or after."""
    whole, move, calls = files.write_atomically, os.replace, []

    def write_half(path, write):
        def half(file):
            write(file)
            file.truncate(file.tell() // 2)
            file.flush()
            suicide()

        calls.append(None)
        whole(path, half if moment == "half written" and len(calls) == 10 else write)

    def replace(source, target):
        if moment == "before the move" and len(calls) == 10:
            suicide()
        move(source, target)
        if moment == "after the move" and len(calls) == 10:
            suicide()

    def work():
        files.write_atomically, os.replace = write_half, replace
        run(checkpoint)

    return work


def epochs_kept(checkpoint):
    """Epochs in the checkpoint, which must be whole; 0 if there is none yet."""
    return len(files.load(checkpoint, "checkpoint")[1]["history"]) if checkpoint.exists() else 0


def main(folder, trials=20):
    """Twenty runs killed at random moments, one or more times each, and three at the worst moments."""
    straight, straight_history = run(folder / "straight.npz")
    began = time.perf_counter()
    os.waitpid(forked(lambda: run(folder / "timed.npz")), 0)
    duration = time.perf_counter() - began
    rng = np.random.default_rng(0)
    moments = ["half written", "before the move", "after the move"]
    for trial in [*moments, *range(trials)]:
        checkpoint = folder / str(trial) / "run.npz"
        kept = []
        if trial in moments:
            _, status = os.waitpid(forked(dies_writing(trial, checkpoint)), 0)
            assert os.WIFSIGNALED(status)
            kept.append(epochs_kept(checkpoint))
        else:
            seconds = duration * rng.random()
            while not killed_after(seconds, lambda: run(checkpoint)):  # noqa: B023 - called at once
                shutil.rmtree(checkpoint.parent)  # it had ended already: anew, and sooner
                seconds /= 2
            kept.append(epochs_kept(checkpoint))
            for _ in range(rng.integers(0, 3)):  # and again while it resumes
                if killed_after(duration * rng.random(), lambda: run(checkpoint)):  # noqa: B023
                    kept.append(epochs_kept(checkpoint))
        resumed, history = run(checkpoint)
        same = all(
            np.array_equal(a, b) for a, b in zip(leaves(resumed.params), leaves(straight.params), strict=True)
        )
        record = {"trial": trial, "epochs_kept": kept, "same": same and history == straight_history}
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
