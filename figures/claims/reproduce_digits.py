"""Compiled with ASAP, the digits teacher keeps its accuracy; but on 17 tokens a few Sinkhorn iterations are cheaper."""

import tempfile
from pathlib import Path

from asap_ref.lab import outcome
from asap_ref.lab.reproduce import ReproduceSettings, reproduce
from asap_ref.support import files


def measure():
    """Run the main job as ``asap-ref reproduce --dataset digits`` does."""
    with tempfile.TemporaryDirectory() as out:
        return reproduce(ReproduceSettings(dataset="digits"), Path(out))


def draw(record, folder):
    """Write the table and the figure."""
    table = Path(folder) / "reproduce_digits.md"
    files.save_text(table, outcome.markdown(record))
    return [table, *outcome.draw(record, folder, name="reproduce_digits")]
