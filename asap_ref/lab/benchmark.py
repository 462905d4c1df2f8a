"""``asap-ref bench``: how fast the attentions are, side by side in one run, and how near to the teacher.

    frozen      attention forward as in a trained layer: time, and distance from the teacher
    sharp       the same with scores that spread much more
    uniform     the same with scores that hardly spread, and few tokens
    parts       where the time of ASAP goes
    training    forward and backward of a layer
    small       many small problems: the default form against the readable one
    long        long sequences, Sinkhorn in tiles of its own
    compile     seconds to compile a layer, and after how many forward passes that is paid back
    memory      peak beyond the inputs, in a process of its own
    reproduce   the main job, and the layers of the model that it trains

The record holds every raw time; bars.py reads it, and figures/speed/bench.py draws it. Sections can be measured apart:
what is already in the record stays.
"""

from __future__ import annotations

import functools
from pathlib import Path

from threadpoolctl import threadpool_limits

from asap_ref.fast.threads import worker_count
from asap_ref.lab import jobs, races
from asap_ref.lab.bars import markdown
from asap_ref.lab.stopwatch import timed
from asap_ref.lab.track import EXTENTS, Track
from asap_ref.support import files
from asap_ref.support.settings import check_choice

SECTIONS = {
    **{name: functools.partial(races.forward, section=name) for name in races.KINDS},
    "parts": races.parts,
    "training": races.training,
    "small": races.small,
    "long": races.long,
    "compile": jobs.compile_layer,
    "memory": jobs.memory,
    "reproduce": jobs.main_job,
}


def bench(out, *, extent="default", only=(), backend="numpy", say=print):
    """Run the benchmark, write its record to ``out`` (JSON), and say how the bars were met.

    Parameters
    ----------
    out : path or None
        None writes nothing. Each section is written when it is done.
    extent : {"quick", "default"}
        Within a minute, or half an hour.
    only : sequence of str
        Sections to measure, of `SECTIONS`; the others stay as they are in ``out``, if it is there. All when empty.
    backend : str
        Array module of our functions. Times on other than NumPy are absolute, and without the memory of the host.
    say : callable
        Where lines for people go.

    Returns
    -------
    dict
        The record.

    Raises
    ------
    ValueError, ModuleNotFoundError
        If there is no such extent, section or module, or ``out`` was measured otherwise or elsewhere.
    """
    check_choice(extent, "extent", "bench", tuple(EXTENTS))
    for section in only:
        check_choice(section, "only", "bench", tuple(SECTIONS))
    with threadpool_limits(worker_count()):
        track = Track(extent, backend, say)
        about = track.about()
        record = {"about": about, "left_out": [], "seconds": {}}
        if only and out is not None and Path(out).exists():
            record = files.load_json(out, "bench")
            differ = [key for key in about if record["about"].get(key) != about[key]]
            if differ:
                raise ValueError(f"{out} was measured with another {', '.join(differ)}; choose another --out")
        if out is not None:  # not found out after minutes
            files.save_json(out, "bench", record)
        for section in only or SECTIONS:
            with timed(record["seconds"], section):
                record[section] = SECTIONS[section](track)
            record["left_out"] = list(dict.fromkeys([*record["left_out"], *track.left_out]))
            if out is not None:
                files.save_json(out, "bench", record)
    say(markdown(record))
    return record
