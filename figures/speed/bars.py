"""The goals of speed, with the default map: who is asked about in each, and no others, in one run."""

from threadpoolctl import threadpool_limits

from asap_ref.fast.threads import worker_count
from asap_ref.lab import competitors as ours
from asap_ref.lab import jobs
from asap_ref.lab.bars import ASAP, REFINED, SCALING, SDPA, TORCH_LOG, bars_table, compile_table, measured_on
from asap_ref.lab.competitors import HEADS
from asap_ref.lab.track import Track
from asap_ref.support import files

KIND = "recorded-like"
FLOOR = "product, exp, product"


def measure():
    """Race at 1024 and 4096 tokens, and calibrate: some three minutes, where the whole benchmark takes half an hour."""
    with threadpool_limits(worker_count()):
        track = Track("default", "numpy", print)
        track.pace = {"rounds": 9, "least": 3, "budget": 3.0}
        record = {"about": track.about(), "left_out": track.left_out}
        record["frozen"] = [race(track, n) for n in (1024, 4096)]
        record["compile"] = jobs.compile_layer(track)
    return record


def race(track, n):
    """Everybody that a goal names, at one length."""
    racers = {"softmax": ours.SOFTMAX["softmax"], SCALING: ours.sinkhorn(), ASAP: ours.asap(n, KIND, HEADS)}
    if n == 1024:
        racers |= {FLOOR: ours.FLOORS[FLOOR], REFINED: ours.asap(n, KIND, HEADS, refine=1)} | ours.LOG_DOMAIN
        if track.peers is not None:
            peers = track.peers.forward(track.device)
            racers |= {name: peers[name] for name in (SDPA, TORCH_LOG) if name in peers}
    return track.race(f"goals, n = {n}", racers, ours.layer(n, KIND), kind=KIND)


def draw(record, folder):
    """Write the table."""
    path = folder / "bars.md"
    others = (
        "Goals of training steps, memory, long sequences and the main job are judged in [bench.md](bench.md).\n"
    )
    parts = [bars_table(record), others, compile_table(record), *measured_on(record)]
    files.save_text(path, "\n".join(parts))
    return [path]
