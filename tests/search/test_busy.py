"""Whether other programs use the machine."""

from __future__ import annotations

import os
import subprocess
import sys

from hasten.search.busy import busy_cores


def test_a_program_that_runs_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            used = busy_cores()
        finally:
            other.kill()
    assert 0.3 < used <= (os.cpu_count() or 1)
