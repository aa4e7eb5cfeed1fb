"""What runs in a process that calls one function; see `isolated.py`.

Started as a script with its job as JSON. The last line of stderr says what went wrong, unless that is an
error of hasten, which is a result.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Calls the function that the command line names."""
    job = json.loads(sys.argv[1])
    sys.path.append(job["path"])
    from pathlib import Path

    from hasten.errors import HastenError
    from hasten.search.engines_worker import die_with_parent, limit_memory
    from hasten.search.transfer import read_value, write_value

    die_with_parent()
    limit_memory(job["memory"])
    function, args, named = read_value(Path(job["call"]))
    if job["told"] is not None:
        told = Path(job["told"]).open("a", encoding="utf-8")  # noqa: SIM115 - lives as long as the process
        named = {**named, "progress": lambda text: print(text, file=told, flush=True)}
    error, result = None, None
    try:
        result = function(*args, **named)
    except HastenError as raised:
        error = raised
    write_value((error, result), Path(job["result"]), Path(job["folder"]))


if __name__ == "__main__":
    main()
