"""Padding is left out: at the positions that a mask shows nothing changes, and nothing else is computed."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, program

import hasten
from hasten.codegen.padding import skip_padding, why_padded
from hasten.errors import OptionError
from hasten.loops.descriptions import Attention, Gemm
from hasten.loops.dtypes import INDEX
from hasten.loops.evaluate import evaluate
from hasten.loops.expr import Size
from hasten.loops.program import Program
from hasten.loops.verify import verify
from hasten.target import Target, native, runs_here

WIDTH, HEADS, WORDS = 8, 2, 20

MASKS = {
    "boolean": "m = Cast<to = 9>(mask) mk = Unsqueeze(m, middle)",
    "low": "m = Cast<to = 9>(mask) w = Where(m, zero, lowest) mk = Unsqueeze(w, middle)",
    "arithmetic": "f = Cast<to = 1>(mask) n = Sub(one, f) w = Mul(n, lowest) mk = Unsqueeze(w, middle)",
    "inverted": "m = Cast<to = 9>(mask) n = Not(m) w = Where(n, lowest, zero) mk = Unsqueeze(w, middle)",
    "float16": "f = Cast<to = 1>(mask) n = Sub(one, f) w = Mul(n, hidden) mk = Unsqueeze(w, middle)",
    "integers": "n = Sub(one_i, mask) i = Mul(n, hidden_i) f = Cast<to = 1>(i) mk = Unsqueeze(f, middle)",
    "distance": "m = Cast<to = 9>(mask) w = Where(m, zero, lowest) u = Unsqueeze(w, middle) "
    "i = Range(zero_i, length, one_i) j = Unsqueeze(i, last) d = Sub(i, j) g = Cast<to = 1>(d) "
    "mk = Add(u, g)",
    "distance or low": "m = Cast<to = 9>(mask) u = Unsqueeze(m, middle) "
    "i = Range(zero_i, length, one_i) j = Unsqueeze(i, last) d = Sub(i, j) g = Cast<to = 1>(d) "
    "mk = Where(u, g, lowest)",
    "causal": "m = Cast<to = 9>(mask) u = Unsqueeze(m, middle) "
    "i = Range(zero_i, length, one_i) j = Unsqueeze(i, last) c = LessOrEqual(i, j) mk = And(u, c)",
    "future": "m = Cast<to = 9>(mask) n = Not(m) u = Unsqueeze(n, middle) "
    "i = Range(zero_i, length, one_i) j = Unsqueeze(i, last) c = Less(j, i) o = Or(u, c) mk = Not(o)",
}
"""Masks of an attention, `mk`, made from an input `mask` [b, s] of integers."""

POOLS = {
    "first": ("float[b, 8] pool", "pool = Gather<axis = 1>(x2, zero_i)"),
    "last": ("float[b, 8] pool", "pool = Gather<axis = 1>(x2, minus_i)"),
    "mean": (
        "float[b, 8] pool",
        "pf = Cast<to = 1>(mask) pu = Unsqueeze(pf, last) px = Mul(x2, pu) "
        "ps = ReduceSum<keepdims = 0>(px, axis) "
        "pc = ReduceSum<keepdims = 0>(pu, axis) pm = Max(pc, one) pool = Div(ps, pm)",
    ),
    "max": (
        "float[b, 8] pool",
        "pb = Cast<to = 9>(mask) pu = Unsqueeze(pb, last) px = Where(pu, x2, lowest) "
        "pool = ReduceMax<keepdims = 0>(px, axis)",
    ),
    "states": ("float[b, s, 8] x2", ""),
    "scores": (
        "float[b, s, 8] x2, float[b, s] pool",
        "pm = Mul(x2, x2) pool = ReduceSum<keepdims = 0>(pm, axis_2)",
    ),
}
"""Outputs: their declaration, and what follows the second layer, `x2`."""


def encoder(mask: str, pool: str) -> Program:
    """Two layers over an embedding, with the given mask and outputs."""
    declared, nodes = POOLS[pool]
    return transformer(mask, declared, nodes)


def transformer(mask: str, outputs: str, nodes: str, shape: str = "b, s", before: str = "") -> Program:
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> np.ndarray:
        # Small enough that a softmax does not amplify rounding.
        return (0.4 * rng.standard_normal(shape)).astype(np.float32)

    scalars = {"zero": 0, "one": 1, "lowest": np.finfo(np.float32).min, "hidden": -1e4}
    integers = {"zero_i": 0, "one_i": 1, "minus_i": -1, "hidden_i": -(10**18), "middle": [1, 2], "last": [-1]}
    integers |= {"axis": [1], "axis_2": [2]}
    constants = {name: np.array(value, np.float32) for name, value in scalars.items()}
    constants |= {name: np.array(value) for name, value in integers.items()}
    constants |= {"table": floats(WORDS, WIDTH), "places": floats(64, WIDTH)}
    layers = ""
    for n in (1, 2):
        x = f"x{n - 1}"
        for name in "qkvo":
            constants[f"{name}w{n}"] = floats(WIDTH, WIDTH)
        constants |= {f"uw{n}": floats(WIDTH, 12), f"dw{n}": floats(12, WIDTH), f"g{n}": floats(WIDTH)}
        layers += (
            f"q{n} = MatMul({x}, qw{n}) k{n} = MatMul({x}, kw{n}) v{n} = MatMul({x}, vw{n}) "
            f"a{n} = Attention<q_num_heads = {HEADS}, kv_num_heads = {HEADS}>(q{n}, k{n}, v{n}, mk) "
            f"o{n} = MatMul(a{n}, ow{n}) r{n} = Add(o{n}, {x}) l{n} = LayerNormalization(r{n}, g{n}) "
            f"u{n} = MatMul(l{n}, uw{n}) t{n} = Tanh(u{n}) d{n} = MatMul(t{n}, dw{n}) x{n} = Add(d{n}, l{n}) "
        )
    start = (
        "sh = Shape(ids) length = Gather(sh, one_i) i0 = Range(zero_i, length, one_i) "
        "p0 = Gather(places, i0) e0 = Gather(table, ids) x0 = Add(e0, p0)"
    )
    inputs = f"int64[{shape}] ids, int64[{shape}] mask"
    return program(
        f"({inputs}) => ({outputs}) {{ {start} {before or MASKS[mask]} {layers} {nodes} }}", constants
    )


def feeds(mask: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, WORDS, mask.shape)
    return {"ids": ids, "mask": mask.astype(np.int64)}


def by_length(lengths: list[int], longest: int) -> np.ndarray:
    return np.arange(longest)[None] < np.array(lengths)[:, None]


PATTERNS = {
    "right": by_length([5, 1, 7, 3], 7),
    "left": by_length([5, 1, 7, 3], 7)[:, ::-1],
    "holes": np.random.default_rng(1).random((5, 9)) < 0.5,
    "an empty entry": by_length([4, 0, 6], 6),
    "all": np.ones((2, 19), bool),
    "one entry": by_length([3], 4),
    "nothing": np.zeros((2, 3), bool),
    "long": by_length([1, 64, 40, 33], 64),
}


def skipped(p: Program) -> Program:
    result, done = skip_padding(p)
    assert done is not None
    assert done.masks == ("mask",)
    assert done.hidden == 0
    verify(result)
    return result


PROGRAMS = {*product(MASKS, ["first"]), *product(["low"], POOLS), ("boolean", "mean")}


@pytest.fixture(scope="module")
def encoders() -> list[tuple[Program, Program]]:
    """Programs as they were, and without padding."""
    made = [encoder(mask, pool) for mask, pool in sorted(PROGRAMS)]
    return [(p, skipped(p)) for p in made]


def test_same_answers_where_the_mask_shows(encoders: list[tuple[Program, Program]]) -> None:
    for p, packed in encoders:
        for name, pattern in PATTERNS.items():
            expected, found = evaluate(p, feeds(pattern)), evaluate(packed, feeds(pattern))
            for output, left in found.items():
                right, where = expected[output], np.ones(left.shape, bool)
                if left.shape[:2] == pattern.shape:
                    computed = (left != 0).reshape(*pattern.shape, -1).any(2)
                    where = pattern | computed
                close = {"rtol": 1e-5, "atol": 1e-5, "err_msg": f"{output}, {name}"}
                assert left.shape == right.shape
                np.testing.assert_allclose(left[where], right[where], **close)


def test_only_needed_positions_are_computed(encoders: list[tuple[Program, Program]]) -> None:
    for _, packed in encoders:
        (size,) = packed.measured
        for d in packed.definitions.values():
            if isinstance(d.body, Gemm | Attention):
                assert d.shape[0] == Size(INDEX, size), d.name
    right = by_length([5, 1, 7, 3], 7)
    for mask, pool, positions in (("boolean", "states", 0), ("low", "first", 0), ("low", "last", 6)):
        packed = skipped(encoder(mask, pool))
        needed = right.copy()
        needed[:, positions] |= pool != "states"
        (measured,) = packed.measured.values()
        ranks = evaluate(packed, feeds(right), [measured.tensor])[measured.tensor]
        assert ranks[0, -1] == needed.sum()
        np.testing.assert_array_equal(ranks[1, : needed.sum()], np.flatnonzero(needed))
    states = evaluate(skipped(encoder("boolean", "states")), feeds(right))["x2"]
    assert (states[~right] == 0).all()


def test_compiled(encoders: list[tuple[Program, Program]]) -> None:
    for target in {Target.named("x86-64-v3"), native()}:
        if not runs_here(target):
            continue
        for engine in compile_programs([packed for _, packed in encoders], target, parallel=True):
            for name, pattern in PATTERNS.items():
                # Scores of which 10000 is taken have lost three digits.
                tolerance = 1e-4 if name in ("an empty entry", "nothing") else 1e-5
                agree(engine, feeds(pattern), (1, 3) if name in ("left", "holes") else (1,), tolerance)


@pytest.mark.parametrize("name", ["x86-64-v4", "aarch64"])
def test_interpreted(encoders: list[tuple[Program, Program]], name: str) -> None:
    for _, packed in encoders[::5]:
        for pattern in ("left", "an empty entry"):
            agree(Interpreted.of(packed, Target.named(name)), feeds(PATTERNS[pattern]), (2,), tolerance=1e-5)


@pytest.mark.parametrize("shape", ["1, 9", "3, 9", "b, 9", "2, s"])
def test_fixed_sizes(shape: str) -> None:
    declared, nodes = POOLS["first"]
    p = transformer("low", declared.replace("b", shape.split(",", maxsplit=1)[0]), nodes, shape)
    batch = {"b": 5}.get(shape[0], int(shape[0]) if shape[0].isdigit() else 0)
    pattern = by_length([3, 9, 1, 4, 2][:batch], 9)
    packed = skipped(p)
    for output, right in evaluate(p, feeds(pattern)).items():
        np.testing.assert_allclose(evaluate(packed, feeds(pattern))[output], right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("outputs", "nodes"),
    [
        ("float[b, 8] y", "y = ReduceMean<keepdims = 0>(x2, axis)"),
        ("float[b, 8] y", "y = ReduceMax<keepdims = 0>(x2, axis)"),
        ("float[b, s, 8] y", "y = Softmax<axis = 1>(x2)"),
        ("float[b, 8] y", "z = Softmax<axis = 1>(x2) y = ReduceSum<keepdims = 0>(z, axis)"),
    ],
)
def test_what_depends_on_padding_is_computed_with_it(outputs: str, nodes: str) -> None:
    p = transformer("low", outputs, nodes)
    assert skip_padding(p) == (p, None)
    reader, reason = nodes.split(" = ")[1].partition("<")[0], why_padded(p)
    assert reason is not None
    assert reason.startswith(reader)
    assert " reads x2 at positions that mask may hide" in reason


ATTENTION = "Attention<q_num_heads = 2, kv_num_heads = 2>"


def layer(inputs: str, mask: str, low: float = -1e4, attention: str = ATTENTION) -> Program:
    """An attention of an input `x` to itself, between products; `mask` makes `w` [b, s] of other inputs."""
    rng = np.random.default_rng(0)
    constants = {n: (0.4 * rng.standard_normal((8, 8))).astype(np.float32) for n in ("qw", "kw", "vw", "ow")}
    numbers = {"zero": 0, "one": 1, "hidden": -1e4, "low": low}
    constants |= {n: np.array(value, np.float32) for n, value in numbers.items()}
    integers = {"zero_i": 0, "one_i": 1, "middle": [1, 2], "last": [-1]}
    constants |= {n: np.array(value) for n, value in integers.items()}
    text = f"(float[b, s, 8] x, {inputs}) => (float[b, s, 8] y) {{ {mask} mk = Unsqueeze(w, middle) "
    text += "q = MatMul(x, qw) k = MatMul(x, kw) v = MatMul(x, vw) "
    return program(f"{text} a = {attention}(q, k, v, mk) y = MatMul(a, ow) }}", constants)


def test_a_mask_that_is_added_to_a_causal_attention_does_not_tell() -> None:
    """A token of which all earlier ones are hidden weighs those."""
    added = ("float[b, s] m", "u = Sub(one, m) w = Mul(u, low)")
    assert skip_padding(layer(*added))[1] is not None
    p = layer(*added, attention=ATTENTION.replace(">", ", is_causal = 1>"))
    assert skip_padding(p) == (p, None)
    assert "depends on the query" in (why_padded(p) or "")


def test_products_of_an_input_read_its_rows_at_the_tokens() -> None:
    """An input stays padded: products of it look up where the row of each token is."""
    rng = np.random.default_rng(0)
    packed = skipped(layer("int64[b, s] mask", "w = Cast<to = 9>(mask)"))
    (engine,) = compile_programs([packed], native())
    for name in ("right", "holes", "an empty entry"):
        pattern = PATTERNS[name]
        x = rng.standard_normal((*pattern.shape, 8)).astype(np.float32)
        agree(engine, {"x": x, "mask": pattern.astype(np.int64)}, (1, 3), tolerance=1e-5)


def test_lengths_of_the_texts() -> None:
    """Which entries have no token is found for several at once."""
    mask = "sh = Shape(x) n = Gather(sh, one_i) i = Range(zero_i, n, one_i) l = Cast<to = 7>(lengths) "
    mask += "u = Unsqueeze(l, last) m = Less(i, u) w = Where(m, zero, low)"
    packed, done = skip_padding(layer("int32[b] lengths", mask, -3e38))
    assert done is not None
    assert (done.masks, done.hidden) == (("lengths",), None)
    (engine,) = compile_programs([packed], native())
    rng = np.random.default_rng(0)
    lengths = np.append(rng.integers(1, 9, 32), 0).astype(np.int32)
    x = rng.standard_normal((33, 9, 8)).astype(np.float32)
    agree(engine, {"x": x, "lengths": lengths}, (1, 3), tolerance=1e-5)


@pytest.mark.parametrize("low", [3.4e38, 1e4, 9e3])
def test_an_entry_of_which_two_masks_leave_nothing_weighs_all_keys(low: float) -> None:
    """The second mask is as low as the first, or so near to it that what both hide still weighs something."""
    mask = "f = Cast<to = 1>(mask) n = Sub(f, one) t = Mul(n, low) "
    mask += "g = Cast<to = 1>(other) o = Sub(one, g) h = Mul(o, hidden) w = Add(t, h)"
    p = layer("int64[b, s] mask, int64[b, s] other", mask, low)
    packed, done = skip_padding(p)
    assert done is not None
    masks = np.array([[[0, 0, 1, 1], [0, 1, 1, 1]], [[1, 1, 0, 0], [1, 1, 1, 0]]])
    x = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    given = {"x": x, "mask": masks[0], "other": masks[1]}
    found, right = (evaluate(one, given)["y"] for one in (packed, p))
    np.testing.assert_allclose(found[0], right[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1, 1:3], right[1, 1:3], rtol=1e-5, atol=1e-5)


OTHERS = {
    "of another input": f"q = MatMul(z, qw) a = {ATTENTION}(q, k, v, mk) y = MatMul(a, ow)",
    "learned": f"shape = Shape(x) l = Expand(latents, shape) c = {ATTENTION}(l, k, v, mk) r = Add(c, l) "
    f"q = MatMul(r, qw) a = {ATTENTION}(q, k, v, mk) y = MatMul(a, ow)",
    "given a mean": f"q = MatMul(x, qw) a = {ATTENTION}(q, k, v, mk) o = MatMul(a, ow) "
    "f = Cast<to = 1>(mask) u = Unsqueeze(f, last) w = Mul(o, u) n = ReduceSum(w, axis) t = Add(n, z) "
    "y = MatMul(t, ow)",
}
"""What is by position of an input `z` or of learned queries, as long as the sequence `x` of the mask."""


@pytest.mark.parametrize("name", OTHERS)
def test_a_mask_tells_nothing_of_another_sequence_of_the_same_length(name: str) -> None:
    rng = np.random.default_rng(0)
    names = ("qw", "kw", "vw", "ow", "latents")
    constants = {n: (0.4 * rng.standard_normal((8, 8))).astype(np.float32) for n in names}
    constants |= {"middle": np.array([1, 2]), "last": np.array([-1]), "axis": np.array([1])}
    text = "(float[b, 8, 8] x, float[b, 8, 8] z, int64[b, 8] mask) => (float[b, 8, 8] y) { "
    text += "m = Cast<to = 9>(mask) mk = Unsqueeze(m, middle) k = MatMul(x, kw) v = MatMul(x, vw) "
    p = program(f"{text} {OTHERS[name]} }}", constants)
    packed, done = skip_padding(p)
    assert (done is not None) == (name == "given a mean")
    given = {"mask": by_length([5, 1, 8], 8).astype(np.int64)}
    given |= {n: rng.standard_normal((3, 8, 8)).astype(np.float32) for n in "xz"}
    np.testing.assert_allclose(evaluate(packed, given)["y"], evaluate(p, given)["y"], rtol=1e-5, atol=1e-5)


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(OptionError, match="padding='maybe': give one of skip, compute"):
        hasten.compile("nowhere.onnx", padding="maybe")


def test_without_a_mask_of_the_inputs_there_is_no_padding() -> None:
    p = program(
        "(float[b, s, 8] x) => (float[b, s, 8] z) "
        "{ y = Attention<q_num_heads = 2, kv_num_heads = 2>(x, x, x) z = MatMul(y, w) }",
        {"w": np.ones((8, 8), np.float32)},
    )
    assert skip_padding(p) == (p, None)


def test_masks_that_hide_by_query_are_not_added() -> None:
    """A query that sees no key at all would weigh hidden keys; which queries these are is not known."""
    causal = MASKS["causal"].replace("mk = And(u, c)", "w = And(u, c) mk = Where(w, zero, lowest)")
    p = transformer("causal", *POOLS["states"], before=causal)
    assert skip_padding(p)[1] is None
    assert why_padded(p) is not None


def test_masks_that_tell_or_hide_nothing_are_no_reason() -> None:
    """Neither is one of the sizes alone, though it hides keys by query: there may be no padding."""
    causal = "i = Range(zero_i, length, one_i) j = Unsqueeze(i, last) c = LessOrEqual(i, j) "
    sizes = transformer("", *POOLS["states"], before=f"{causal} mk = Where(c, zero, lowest)")
    assert skip_padding(sizes)[1] is None
    assert why_padded(sizes) is None
    for mask in MASKS:
        assert why_padded(encoder(mask, "first")) is None


def test_part_of_a_model_stays_padded() -> None:
    """What a mean over all positions is computed from does not depend on the attention, and is computed."""
    outputs = "float[b, s, 8] x2, float[b, 8] y"
    packed = skipped(transformer("boolean", outputs, "y = ReduceMean<keepdims = 0>(x0, axis)"))
    pattern = PATTERNS["right"]
    p = transformer("boolean", outputs, "y = ReduceMean<keepdims = 0>(x0, axis)")
    np.testing.assert_allclose(
        evaluate(packed, feeds(pattern))["y"], evaluate(p, feeds(pattern))["y"], rtol=1e-5
    )
    shapes = {len(d.shape) for d in packed.definitions.values() if isinstance(d.body, Gemm)}
    assert shapes == {2}
