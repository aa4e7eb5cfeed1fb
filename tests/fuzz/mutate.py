"""ONNX models made wrong on purpose: by their structure, and by their bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

NUMBERS = (0, -1, 1, 2, -2, 7, 2**31, -(2**31), 2**62, -(2**63), 2**63 - 1)
OPERATORS = ("Add", "Reshape", "Gather", "Concat", "Conv", "Loop", "If", "LSTM", "Slice", "Pad", "Resize",
             "Cast", "Split", "Unheard", "Constant", "Scan", "Attention", "Einsum", "TopK")  # fmt: skip

Mutation = Callable[[ModelProto, random.Random], None]


def _node(m: ModelProto, r: random.Random) -> NodeProto:
    return r.choice(m.graph.node)


def drop_input(m: ModelProto, r: random.Random) -> None:
    n = _node(m, r)
    if n.input:
        del n.input[r.randrange(len(n.input))]


def dangle_input(m: ModelProto, r: random.Random) -> None:
    n = _node(m, r)
    if n.input:
        n.input[r.randrange(len(n.input))] = r.choice(["", "nowhere", *n.output])


def exchange_input(m: ModelProto, r: random.Random) -> None:
    n = _node(m, r)
    known = [*(i.name for i in m.graph.input), *(o for x in m.graph.node for o in x.output)]
    if n.input and known:
        n.input[r.randrange(len(n.input))] = r.choice(known)


def more_inputs(m: ModelProto, r: random.Random) -> None:
    n = _node(m, r)
    n.input.extend(list(n.input)[:1] * r.choice([1, 5]))


def change_outputs(m: ModelProto, r: random.Random) -> None:
    n = _node(m, r)
    n.output.append(r.choice(["", "more", *n.output, *n.input]))


def drop_attribute(m: ModelProto, r: random.Random) -> None:
    n = _node(m, r)
    if n.attribute:
        del n.attribute[r.randrange(len(n.attribute))]


def change_attribute(m: ModelProto, r: random.Random) -> None:
    n = _node(m, r)
    if not n.attribute:
        n.attribute.append(
            helper.make_attribute(r.choice(["axis", "to", "group", "pads"]), r.choice(NUMBERS))
        )
        return
    a = r.choice(n.attribute)
    if a.type == AttributeProto.INT:
        a.i = r.choice(NUMBERS)
    elif a.type == AttributeProto.INTS and a.ints:
        a.ints[r.randrange(len(a.ints))] = r.choice(NUMBERS)
    elif a.type == AttributeProto.FLOAT:
        a.f = r.choice([float("nan"), float("inf"), -1.0, 0.0, 1e30])
    elif a.type == AttributeProto.STRING:
        a.s = r.choice([b"", b"?", b"\xff\xfe", b"linear"])
    elif a.type == AttributeProto.TENSOR:
        _change_tensor(a.t, r)
    else:
        a.type = r.choice(
            [AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.GRAPH]
        )


def longer_attribute(m: ModelProto, r: random.Random) -> None:
    for a in _node(m, r).attribute:
        if a.type == AttributeProto.INTS:
            a.ints.extend([r.choice(NUMBERS)] * r.choice([1, 40]))


def change_operator(m: ModelProto, r: random.Random) -> None:
    _node(m, r).op_type = r.choice(OPERATORS)


def change_domain(m: ModelProto, r: random.Random) -> None:
    _node(m, r).domain = r.choice(["ai.onnx.ml", "com.microsoft", "nobody", "hasten"])


def change_dims(m: ModelProto, r: random.Random) -> None:
    value = r.choice([*m.graph.input, *m.graph.output])
    dims = value.type.tensor_type.shape.dim
    kind = r.randrange(3)
    if kind == 0 or not dims:
        dims.add().dim_value = r.choice(NUMBERS)
    elif kind == 1:
        d = r.choice(dims)
        d.Clear()
        d.dim_value = r.choice(NUMBERS)
    else:
        d = r.choice(dims)
        d.Clear()
        d.dim_param = r.choice(["n", "", "a + b", "1/0", "n*n", "\x00"])


def change_type(m: ModelProto, r: random.Random) -> None:
    value = r.choice([*m.graph.input, *m.graph.output])
    if r.random() < 0.5:
        value.type.tensor_type.elem_type = r.randrange(0, 30)
    else:
        value.type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT


def _change_tensor(t: TensorProto, r: random.Random) -> None:
    kind = r.randrange(5)
    if kind == 0 and t.dims:
        t.dims[r.randrange(len(t.dims))] = r.choice(NUMBERS)
    elif kind == 1:
        t.raw_data = t.raw_data[: len(t.raw_data) // 2]
    elif kind == 2:
        t.data_type = r.randrange(0, 30)
    elif kind == 3:
        t.dims.extend([r.choice(NUMBERS)])
    else:
        t.data_location = TensorProto.EXTERNAL
        t.ClearField("raw_data")
        place = r.choice(["../../../etc/passwd", "/etc/passwd", "missing.bin", "", ".", "a\x00b"])
        t.external_data.add(key="location", value=place)
        t.external_data.add(key="offset", value=str(r.choice(NUMBERS)))


def change_initializer(m: ModelProto, r: random.Random) -> None:
    if m.graph.initializer:
        _change_tensor(r.choice(m.graph.initializer), r)
    else:
        m.graph.initializer.append(helper.make_tensor(m.graph.input[0].name, TensorProto.INT64, [2], [1, -7]))


def remove_node(m: ModelProto, r: random.Random) -> None:
    del m.graph.node[r.randrange(len(m.graph.node))]


def copy_node(m: ModelProto, r: random.Random) -> None:
    m.graph.node.append(_node(m, r))


def close_cycle(m: ModelProto, r: random.Random) -> None:
    n = _node(m, r)
    if n.input and n.output:
        n.input[0] = n.output[0]


def change_versions(m: ModelProto, r: random.Random) -> None:
    kind = r.randrange(3)
    if kind == 0 and m.opset_import:
        m.opset_import[0].version = r.choice([0, -1, 1, 6, 12, 17, 99, 2**62])
    elif kind == 1:
        m.ir_version = r.choice([0, 1, 3, 99, 2**62])
    else:
        m.opset_import.add(domain=r.choice(["", "ai.onnx.ml", "x"]), version=r.choice([1, 3, 99]))


def recursive_function(m: ModelProto, r: random.Random) -> None:
    inner = helper.make_node("Self", ["x"], ["y"], domain="own")
    imports = [helper.make_opsetid("own", 1), helper.make_opsetid("", 20)]
    m.functions.append(helper.make_function("own", "Self", ["x"], ["y"], [inner], imports))
    m.opset_import.add(domain="own", version=1)
    n = _node(m, r)
    n.op_type, n.domain = "Self", "own"


def nested_bodies(m: ModelProto, r: random.Random) -> None:
    graph = GraphProto(name="deep")
    for depth in range(r.choice([1, 3, 60])):
        node = helper.make_node(
            "If", [m.graph.input[0].name], [f"z{depth}"], then_branch=graph, else_branch=graph
        )
        if len(node.SerializeToString()) > 1 << 13:
            break
        graph = helper.make_graph([node], "deep", [], [onnx.ValueInfoProto(name=f"z{depth}")])
    m.graph.node.extend(graph.node)


def rename_outputs(m: ModelProto, r: random.Random) -> None:
    if m.graph.output:
        r.choice(m.graph.output).name = r.choice(["", "nowhere", m.graph.input[0].name])


def remove_interface(m: ModelProto, r: random.Random) -> None:
    del r.choice([m.graph.output, m.graph.input])[:]


STRUCTURAL: Sequence[Mutation] = (
    drop_input, dangle_input, exchange_input, more_inputs, change_outputs, drop_attribute, change_attribute,
    longer_attribute, change_operator, change_domain, change_dims, change_type, change_initializer,
    remove_node, copy_node, close_cycle, change_versions, recursive_function, nested_bodies, rename_outputs,
    remove_interface,
)  # fmt: skip


def mutated(model: bytes, seed: int) -> bytes:
    """A model with one to three faults, or with damaged bytes."""
    r = random.Random(seed)
    if r.random() < 0.25:
        return _damaged(bytearray(model), r)
    proto = onnx.load_from_string(model)
    for _ in range(r.choice([1, 1, 1, 2, 3])):
        if proto.graph.node and proto.graph.input and proto.graph.output:
            r.choice(STRUCTURAL)(proto, r)
    return proto.SerializeToString()


def _damaged(data: bytearray, r: random.Random) -> bytes:
    for _ in range(r.choice([1, 1, 4])):
        at = r.randrange(len(data))
        kind = r.randrange(4)
        if kind == 0:
            data[at] = r.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << r.randrange(8)
        elif kind == 2:
            del data[at : at + r.choice([1, 3, 40])]
        else:
            data[at:at] = bytes(r.randrange(256) for _ in range(r.choice([1, 3, 40])))
        if not data:
            return b"\x08"
    return bytes(data)
