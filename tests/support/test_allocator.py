"""The allocator is asked in a process of its own, and not where the user has settings."""

import os
import subprocess
import sys

ASK = "from asap_ref.support.allocator import keep_freed_memory; print(keep_freed_memory())"


def ask(**more):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=clean | more, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_it_answers_and_leaves_settings_of_the_user():
    assert ask() in ("True", "False")  # False where the C library has no such settings
    assert ask(MALLOC_TRIM_THRESHOLD_="65536") == "False"
