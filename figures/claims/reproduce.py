"""On clouds ASAP keeps the labels of its teacher, nearer than five iterations, and costs what softmax costs."""

import tempfile
from pathlib import Path

from asap_ref.lab import outcome
from asap_ref.lab.reproduce import ReproduceSettings, reproduce
from asap_ref.support import files


def measure():
    """Run the main job as ``asap-ref reproduce`` does."""
    with tempfile.TemporaryDirectory() as out:
        return reproduce(ReproduceSettings(), Path(out))


def draw(record, folder):
    """Write the tables and the figures of the main job."""
    table = Path(folder) / "reproduce.md"
    files.save_text(table, outcome.markdown(record))
    return [table, *outcome.draw(record, folder)]
