"""Element types of the loop IR and their names in NumPy, ONNX and C."""

from __future__ import annotations

import enum

import numpy as np


class DType(enum.StrEnum):
    """An element type. `INDEX` (int64) is also the type of every address and size."""

    BOOL = "bool"
    U8 = "u8"
    I8 = "i8"
    U16 = "u16"
    I16 = "i16"
    U32 = "u32"
    I32 = "i32"
    U64 = "u64"
    I64 = "i64"
    F32 = "f32"
    F64 = "f64"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The NumPy dtype with the same representation."""
        return np.dtype(_NUMPY[self])

    @property
    def bytes(self) -> int:
        """Size of one element in bytes."""
        return self.numpy.itemsize

    @property
    def c_name(self) -> str:
        """The C type of one element; a boolean is stored as one byte, 0 or 1."""
        return _C_NAMES[self]

    @property
    def is_float(self) -> bool:
        """True for floating-point types."""
        return self in (DType.F32, DType.F64)

    @property
    def is_signed(self) -> bool:
        """True for types that hold negative values."""
        return self.is_float or self.value.startswith("i")

    @staticmethod
    def of(dtype: np.dtype[np.generic] | type[np.generic]) -> DType | None:
        """The element type that a NumPy dtype maps to, or None where the IR has none."""
        return _FROM_NUMPY.get(np.dtype(dtype).name)


_NUMPY = {
    DType.BOOL: "bool",
    DType.U8: "uint8",
    DType.I8: "int8",
    DType.U16: "uint16",
    DType.I16: "int16",
    DType.U32: "uint32",
    DType.I32: "int32",
    DType.U64: "uint64",
    DType.I64: "int64",
    DType.F32: "float32",
    DType.F64: "float64",
}
_FROM_NUMPY = {name: dtype for dtype, name in _NUMPY.items()}
_C_NAMES = {
    dtype: "uint8_t"
    if dtype is DType.BOOL
    else {"f32": "float", "f64": "double"}.get(dtype.value, f"{name}_t")
    for dtype, name in _NUMPY.items()
}

INDEX = DType.I64
