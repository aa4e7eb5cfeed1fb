"""The entry point of the command `hasten`: says what is missing, or starts."""

from __future__ import annotations

import importlib.util
import sys

_NEEDED = ("click", "rich", "onnx", "onnx_ir")  # the extra `compile`
_INTERRUPTED = 130  # as shells have it for SIGINT


def main() -> None:
    """Runs the command; exits with 0, 1 (a comparison failed) or 2 (an error, told in one line)."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"hasten: error: the command line needs {', '.join(missing)}, which {_is(missing)} not "
            "installed: pip install 'hasten[compile]'",
            file=sys.stderr,
        )
        raise SystemExit(2)
    try:
        from hasten.cli.group import hasten
    except KeyboardInterrupt:
        print("hasten: interrupted", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from None
    hasten(prog_name="hasten")


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


if __name__ == "__main__":
    main()
