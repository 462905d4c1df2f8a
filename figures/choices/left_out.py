"""What did not pay and was left out: hidden layer, calibration in order, other slices or numbers of them, semi-dual.

The options are gone, so this cannot be measured again: the record is of the last version that had them.
"""

from pathlib import Path

import numpy as np

from asap_ref.support import files
from asap_ref.support.tables import markdown_table


def draw(record, folder):
    """Write the table."""
    table = Path(folder) / "left_out.md"
    files.save_text(table, markdown(record))
    return [table]


def markdown(record):
    """Write errors without and with each option."""
    lines = [["option that was left out", "data", "output error without", "with"]]
    lines += [[row["option"], row["data"], error(row["without"]), error(row["with"])] for row in record["rows"]]
    hard, instead, made_on = record["rows"][2], record["instead"], record["machine"]
    return markdown_table(lines) + (
        f"\nAttention output error, relative to the teacher's, geometric means over layers and heads; where there is "
        f"a spread, of three seeds. A hidden layer took {hard['times_as_long']:.0f} times as long at inference on the "
        f"hard case; {instead['option']} brings {error(instead['without'])} to {error(instead['with'])} on "
        f"{instead['data']}. "
        f"Each was measured with the last version that had it. {made_on['processor']}, NumPy {made_on['numpy']}.\n"
    )


def error(seeds):
    """Mean, and the standard deviation where there are several seeds."""
    mean = f"{np.mean(seeds):.{3 if len(seeds) > 1 else 4}f}"
    return mean if len(seeds) == 1 else f"{mean} ± {np.std(seeds):.3f}"
