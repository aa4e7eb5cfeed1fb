"""Keeping the chatter of libraries out of a user's terminal."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Silence warnings, and log messages below an error, while the block runs.

    Args:
        *loggers: Names of the loggers to silence, such as `onnx_ir`. Those below them that set a
            level of their own are to be named too.
    """
    before = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def silent(*loggers: str) -> Iterator[None]:
    """Do as `quiet`, and drop what is printed meanwhile, such as progress bars.

    Args:
        *loggers: As for `quiet`.
    """
    noise = io.StringIO()
    with quiet(*loggers), contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
        yield
