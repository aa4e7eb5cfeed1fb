"""All verbs as one command, and what becomes of errors: one line on stderr and exit code 2."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import click

from hasten import __version__
from hasten.cli.bench import bench
from hasten.cli.compile import compile_
from hasten.cli.doctor import doctor
from hasten.cli.export import export
from hasten.cli.inspect import inspect_
from hasten.cli.optimize import optimize_
from hasten.cli.profile import profile
from hasten.cli.prune import prune_
from hasten.cli.run import run
from hasten.cli.tune import tune
from hasten.cli.verify import verify
from hasten.errors import HastenError

_ERROR, _BUG, _INTERRUPTED = 2, 70, 130
_DEBUG = "--debug"


class Boundary(click.Group):
    """A group that ends the process with one line for each error, and a traceback with --debug alone."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Runs a command line.

        Raises:
            SystemExit: always.
        """
        arguments = list(sys.argv[1:] if args is None else args)
        debug = _DEBUG in arguments  # before or after the verb
        arguments = [argument for argument in arguments if argument != _DEBUG]
        extra["standalone_mode"] = False
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                sys.exit(super().main(arguments, *rest, **extra) or 0)
            except (click.Abort, KeyboardInterrupt):
                _fail("interrupted", _INTERRUPTED)
            except BrokenPipeError:
                # Who read our output has gone; nothing is left to say, not even while exiting.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(0)
            except getattr(click.exceptions, "NoArgsIsHelpError", ()) as error:  # since click 8.2
                click.echo(error.format_message(), err=True)
                sys.exit(_ERROR)
            except (HastenError, click.ClickException, OSError, MemoryError) as error:
                _fail(f"error: {_message(error)}", _ERROR, debug=debug)
            except Exception as error:  # noqa: BLE001 - a bug, which is said to be one
                _fail(
                    f"internal error: {type(error).__name__}: {_line(str(error))}; this is a bug in hasten: "
                    "please report it with what the same command says with --debug",
                    _BUG,
                    debug=debug,
                )


def _message(error: BaseException) -> str:
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        return f"{_line(error.format_message())}{hint}"
    if isinstance(error, MemoryError):
        return f"not enough memory: {_line(str(error)) or 'try a smaller batch'}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return _line(str(error))


def _line(text: str) -> str:
    return "; ".join(part.strip() for part in text.splitlines() if part.strip())


def _fail(text: str, status: int, *, debug: bool = False) -> None:
    if debug:
        traceback.print_exc()
    click.echo(f"hasten: {text}", err=True)
    sys.exit(status)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"hasten: warning: {_line(str(message))}", err=True)


@click.group(
    cls=Boundary,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Begin with:  hasten compile model.onnx -o model.hasten",
)
@click.version_option(__version__, message="hasten %(version)s")
@click.option(_DEBUG, is_flag=True, expose_value=False, help="Show a traceback when something fails.")
def hasten() -> None:
    """Compile trained neural networks to fast machine code.

    hasten reads an ONNX file or a Hugging Face model folder (MODEL), compiles it for this processor, and
    writes one file (an artifact, OUT.hasten) that opens in milliseconds and needs Python and NumPy alone.
    """


for _verb in (
    compile_,
    optimize_,
    prune_,
    run,
    verify,
    bench,
    profile,
    inspect_,
    export,
    doctor,
    tune,
):
    hasten.add_command(_verb)
