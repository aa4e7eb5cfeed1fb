"""Runs generated code and the C runtime under gcc's sanitizers.

python tools/sanitize.py [--only address|thread] [--folder FOLDER]

AddressSanitizer and UndefinedBehaviorSanitizer over one in ten cases of ONNX's test suite and some whole
models; ThreadSanitizer over sessions that several threads use at once.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.sanitize.sanitizers import ADDRESS, THREAD, environment


def main() -> int:
    """Runs the sanitizers that there are; 1 if one finds something or is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[ADDRESS.name, THREAD.name])
    parser.add_argument("--folder", type=Path, default=Path("build/sanitize"), help="for compiled objects")
    options = parser.parse_args()
    failed = False
    for sanitizer in (ADDRESS, THREAD):
        if options.only not in (None, sanitizer.name):
            continue
        variables = environment(sanitizer, options.folder)
        if variables is None:
            print(f"gcc with {', '.join(sanitizer.libraries)} is needed and was not found: install gcc")
            return 1
        start = time.monotonic()
        command = [sys.executable, "-m", "tests.sanitize.examine", sanitizer.name]
        # ThreadSanitizer wants addresses where it expects them, not where chance puts them.
        fixed = ["setarch", "-R"] if sanitizer is THREAD and shutil.which("setarch") else []
        done = subprocess.run(
            [*fixed, *command], env=variables, cwd=Path(__file__).parent.parent, check=False
        )
        verdict = "clean" if done.returncode == 0 else f"failed with status {done.returncode}"
        print(f"{sanitizer.name}: {verdict} in {time.monotonic() - start:.0f} s", flush=True)
        failed |= done.returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
