"""Steps that read between elements or fit sizes, and small operators with no place elsewhere."""

from __future__ import annotations

import numpy as np
from onnx import helper
from tests.differential.graph import Builder, Unfit, Value, elements, fixed, onnx_type

WIDE = ("float32", "float64")


def _picture(b: Builder, *, dtypes: tuple[str, ...] = ("float32",)) -> Value:
    """A value of four axes without empty ones; a new input where there is none."""

    def fits(v: Value) -> bool:
        return v.rank == 4 and v.dtype in dtypes and v.bound <= 1e3 and all(0 not in d for d in v.shape)

    if any(fits(v) for v in b.values):
        return b.source(fits)
    shape = (b.dim(), b.const_dim(b.pick([1, 3, 4])), *(b.const_dim(b.pick([2, 4, 5, 6])) for _ in "hw"))
    if 0 in shape[0] or elements(shape) > 3000:
        raise Unfit
    return b.numbers("float32", shape)


def grid_sample(b: Builder) -> None:
    x = _picture(b)
    rows, columns = b.dim(), b.const_dim(b.int(1, 5))
    if 0 in rows:
        raise Unfit
    version = 20 if b.version >= 20 else 16
    modes = {16: ["bilinear", "nearest", "bicubic"], 20: ["linear", "nearest", "cubic"]}[version]
    mode = b.pick(modes)
    # Odd multiples of 1/16 lie on no border of a pixel of these pictures, which engines round apart.
    grid = b.add_input(
        "float32",
        (x.shape[0], rows, columns, b.const_dim(2)),
        lambda r, _, s: ((2 * r.integers(-9, 9, s) + 1) / 16.3).astype(np.float32),
        1.2,
        None,
    )
    b.emit(
        "GridSample",
        [x, grid],
        x,
        (*x.shape[:2], rows, columns),
        bound=4 * x.bound,
        fraction=None,
        mode=mode,
        # Past the border ONNX Runtime's cubic differs from ONNX's, which knows this mode from 20 on.
        padding_mode=b.pick(["zeros", "reflection", "border"][: 2 if mode == "bicubic" else 3]),
        align_corners=b.int(0, 1),
    )


def center(b: Builder) -> None:
    x = b.source(lambda v: v.rank >= 1 and v.dtype in (*WIDE, "int32", "int64", "uint8", "bool"))
    axes = sorted(int(a) for a in b.rng.choice(x.rank, b.int(1, x.rank), replace=False))
    lengths = [b.int(1, 7) for _ in axes]
    shape = list(x.shape)
    for a, n in zip(axes, lengths, strict=True):
        shape[a] = b.const_dim(n)
    b.emit("CenterCropPad", [x, b.ints(*lengths)], x, tuple(shape), axes=axes)


def resize_to(b: Builder) -> None:
    """Resize to sizes, of chosen axes, with its other modes."""
    x = _picture(b)
    if not all(fixed(d) for d in x.shape[2:]):
        raise Unfit
    mode = b.pick(["nearest", "linear", "cubic"])
    if mode == "nearest":
        coordinates = b.pick(["asymmetric", "half_pixel_symmetric"])
    else:
        coordinates = b.pick(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
    space = [b.int(1, 9) for _ in "hw"]
    sizes = b.ints(*space) if b.version >= 18 and b.chance(0.5) else None
    attributes: dict[str, object] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "cubic" and b.chance(0.5):
        attributes |= {"cubic_coeff_a": -0.5, "exclude_outside": b.int(0, 1)}
    if mode == "linear" and sizes and b.chance(0.3):
        attributes["antialias"] = 1
    if sizes:
        attributes["axes"] = [2, 3]
    elif all(fixed(d) for d in x.shape):
        sizes = b.ints(x.shape[0][0], x.shape[1][0], *space)
    else:
        raise Unfit
    shape = (*x.shape[:2], *(b.const_dim(n) for n in space))
    exact = x.fraction if mode == "nearest" else None
    b.emit("Resize", [x, "", "", sizes], x, shape, bound=3 * x.bound, fraction=exact, **attributes)


def columns_to_image(b: Builder) -> None:
    x = b.numbers("float32", (b.dim(), b.const_dim(2 * 4), b.const_dim(4 * 3)))
    if 0 in x.shape[0]:
        raise Unfit
    shape = (x.shape[0], *(b.const_dim(n) for n in (2, 5, 4)))
    b.emit("Col2Im", [x, b.ints(5, 4), b.ints(2, 2)], x, shape, bound=16)


def blocks(b: Builder) -> None:
    """DepthToSpace and SpaceToDepth where they fit: of a picture of their own."""
    n = b.dim()
    if 0 in n:
        raise Unfit
    size = b.pick([2, 3])
    dtype = b.pick(["float32", "float32", "float64"])
    c, h, w = b.int(1, 2), b.int(1, 3), b.int(1, 3)
    if b.chance(0.5):
        x = b.numbers(dtype, (n, *(b.const_dim(k) for k in (c * size**2, h, w))))
        shape = (n, *(b.const_dim(k) for k in (c, h * size, w * size)))
        b.emit("DepthToSpace", [x], x, shape, blocksize=size, mode=b.pick(["DCR", "CRD"]))
    else:
        x = b.numbers(dtype, (n, *(b.const_dim(k) for k in (c, h * size, w * size))))
        shape = (n, *(b.const_dim(k) for k in (c * size**2, h, w)))
        b.emit("SpaceToDepth", [x], x, shape, blocksize=size)


def alike(b: Builder) -> None:
    """Operators that pass a value on: with another's type, or with what training drops."""
    x = b.source(lambda v: v.dtype in (*WIDE, "float16"))
    if b.chance(0.5):
        y = b.source(lambda v: v.dtype in (*WIDE, "float16") and v.dtype != x.dtype)
        b.emit("CastLike", [x, y], x, dtype=y.dtype)
    elif b.chance(0.5):
        b.emit("Dropout", [x], x)
    else:
        b.emit_all("Dropout", [x], x, [x.shape, x.shape], dtypes=[x.dtype, "bool"], bound=max(x.bound, 1))


def determinant(b: Builder) -> None:
    n = b.int(1, 3)
    batch = tuple(b.dim() for _ in range(b.int(0, 2)))
    if any(0 in d for d in batch) or elements(batch) > 200:
        raise Unfit
    x = b.numbers("float32", (*batch, b.const_dim(n), b.const_dim(n)))
    b.emit("Det", [x], x, batch, bound=6 * 4**n, fraction=None)


def kept_boxes(b: Builder) -> None:
    """NonMaxSuppression; of what it finds a sum, since its length depends on the data."""
    batch, classes, count = b.int(1, 2), b.int(1, 2), b.int(2, 8)

    def boxes(r: np.random.Generator, _: int, s: tuple[int, ...]) -> np.ndarray:
        corners = r.integers(0, 8, (*s[:-1], 2))
        return np.concatenate([corners, corners + r.integers(1, 6, (*s[:-1], 2))], -1).astype(np.float32)

    def scores(r: np.random.Generator, _: int, s: tuple[int, ...]) -> np.ndarray:
        return ((r.permutation(int(np.prod(s))).reshape(s) + 1) / 64).astype(np.float32)

    x = b.add_input("float32", tuple(map(b.const_dim, (batch, count, 4))), boxes, 14, 0)
    y = b.add_input("float32", tuple(map(b.const_dim, (batch, classes, count))), scores, 1, None)
    numbers = [(b.int(1, 4), "int64"), (0.3, "float32"), (0.05, "float32")]
    limits = [b.constant(np.array([n]), dtype) for n, dtype in numbers]
    found = b.emit("NonMaxSuppression", [x, y, *limits], x, (b.const_dim(0), b.const_dim(3)),
                   dtype="int64", bound=10, fraction=0)  # fmt: skip
    b.values.remove(found)
    b.emit("ReduceSum", [found, b.ints(0)], found, (b.const_dim(3),), bound=200, keepdims=0)


def bits(b: Builder) -> None:
    """Bytes from floats and back through integers of their width."""
    b.need(21)
    x = b.source(lambda v: v.dtype in ("int8", "uint8") and v.exact)
    to = "int4" if x.dtype == "int8" else "uint4"
    limits = (-8, 7) if to == "int4" else (0, 15)
    low, high = (b.constant(np.array(n), x.dtype) for n in limits)
    small = b.emit("Clip", [x, low, high], x, bound=15)
    kind = {"int4": helper.TensorProto.INT4, "uint4": helper.TensorProto.UINT4}[to]
    narrow = b.emit("Cast", [small], small, to=kind)
    b.values.remove(narrow)
    b.emit("Cast", [narrow], small, to=onnx_type(x.dtype))


STEPS = (
    (grid_sample, 0.6), (center, 0.7), (resize_to, 0.7), (columns_to_image, 0.15), (blocks, 0.4),
    (alike, 0.6), (determinant, 0.2), (kept_boxes, 0.2), (bits, 0.3),
)  # fmt: skip
