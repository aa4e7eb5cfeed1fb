"""Element types of the loop IR and their names in NumPy, ONNX and C."""

from __future__ import annotations

import enum

import ml_dtypes
import numpy as np


class DType(enum.StrEnum):
    """An element type. `INDEX` (int64) is also the type of every address and size.

    `BF16` is a type of storage: it is loaded, stored, converted to and from f32, and multiplied in
    pairs with sums in f32. Arithmetic on it there is none. `F16` is converted to and from f32 only.
    """

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
    BF16 = "bf16"
    F16 = "f16"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The NumPy dtype with the same representation."""
        known: np.dtype[np.generic] = np.dtype(_NUMPY[self])
        return known

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
        return self in (DType.F32, DType.F64, DType.BF16, DType.F16)

    @property
    def is_signed(self) -> bool:
        """True for types that hold negative values."""
        return self.is_float or self.value.startswith("i")

    @staticmethod
    def of(dtype: np.dtype[np.generic] | type[np.generic]) -> DType | None:
        """The element type that a model's tensor of a NumPy dtype has, or None where the IR has none."""
        found = DType.stored(dtype)
        return None if found in (DType.BF16, DType.F16) else found

    @staticmethod
    def stored(dtype: np.dtype[np.generic] | type[np.generic]) -> DType | None:
        """The element type of an array in memory, those that only generated code uses included."""
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
    DType.BF16: ml_dtypes.bfloat16,
    DType.F16: "float16",
}
_FROM_NUMPY = {np.dtype(name).name: dtype for dtype, name in _NUMPY.items()}
_C_NAMES = {dtype: f"{np.dtype(name).name}_t" for dtype, name in _NUMPY.items()} | {
    DType.BOOL: "uint8_t",
    DType.F32: "float",
    DType.F64: "double",
    DType.BF16: "hasten_bf16",
    DType.F16: "_Float16",
}

BYTES = (DType.U8, DType.I8)
"""The operands of a product with exact sums, in this order; see `loops.descriptions.Gemm`."""

INDEX = DType.I64
