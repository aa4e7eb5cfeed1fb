"""hasten: a trained model in, the fastest verified version of it out.

    import hasten

    fast = hasten.compile("model.onnx")          # same answers, compiled to machine code
    out = fast.run({"x": array})                 # NumPy in, NumPy out
    fast.save("model.hasten")
    fast = hasten.open("model.hasten")           # no compiler, no framework

Importing `hasten` needs NumPy alone; `compile` loads the compile side when it is first used.
"""

from __future__ import annotations

from hasten.errors import HastenError

__version__ = "0.1.0"
__all__ = ["HastenError", "__version__"]
