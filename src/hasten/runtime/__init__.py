"""The deploy side: open an artifact and run it, with NumPy alone."""

from hasten.runtime.manifest import TensorInfo
from hasten.runtime.session import Session
from hasten.runtime.session import open_session as open  # noqa: A004

__all__ = ["Session", "TensorInfo", "open"]
