"""ONNX models made wrong on purpose: by their structure, and by their bytes.

External data are said to be in files of `FILES`, relative to the folder where the model is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

NUMBERS = (0, -1, 1, 2, -2, 7, 2**31, -(2**31), 2**62, -(2**63), 2**63 - 1)
OPERATORS = ("Add", "Reshape", "Gather", "Concat", "Conv", "Loop", "If", "LSTM", "Slice", "Pad", "Resize",
             "Cast", "Split", "Unheard", "Constant", "Scan", "Attention", "Einsum", "TopK")  # fmt: skip

SECRET = "../secret.bin"
"""A file that a model has no business to read."""

FILES = ("data.bin", SECRET, "link.bin", "../../../etc/passwd", "/etc/passwd", "missing.bin", "", ".", "..",
         "a\x00b", "data.bin/", "x" * 5000, "/dev/zero")  # fmt: skip

Mutation = Callable[[ModelProto, random.Random], None]


def _bodies(nodes: Sequence[NodeProto]) -> Iterator[GraphProto]:
    """The graphs in attributes of nodes, and in theirs."""
    for n in nodes:
        for a in n.attribute:
            if a.type == AttributeProto.GRAPH:
                yield a.g
                yield from _bodies(a.g.node)


def _node(m: ModelProto, r: random.Random) -> NodeProto:
    """A node of the graph, or of a body in it."""
    inner = [n for g in _bodies(m.graph.node) for n in g.node]
    return r.choice(inner if inner and r.random() < 0.5 else m.graph.node)


def _give(m: ModelProto, node: NodeProto, *inputs: TensorProto, rank: int = 1, dtype: int = 1) -> None:
    """Adds a node and its constants; its first output is one of the model's."""
    m.graph.initializer.extend(inputs)
    m.graph.node.append(node)
    m.graph.output.append(helper.make_tensor_value_info(node.output[0], dtype, [None] * rank))


def _ints(name: str, *values: int) -> TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


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
        place = r.choice([*FILES, str(Path(SECRET).absolute())])
        t.external_data.add(key="location", value=place)
        if r.random() < 0.5:
            t.external_data.add(key="offset", value=r.choice([str(r.choice(NUMBERS)), "", "x", "1e9"]))
        if r.random() < 0.3:
            t.external_data.add(key="length", value=str(r.choice(NUMBERS)))


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


def _functions(m: ModelProto, r: random.Random, calls: Sequence[Sequence[str]]) -> None:
    """Functions F0, F1 ..., each calling others, and a node of the graph that calls the first one."""
    version = next((o.version for o in m.opset_import if not o.domain), 20)
    imports = [helper.make_opsetid("own", 1), helper.make_opsetid("", version)]
    for k, called in enumerate(calls):
        names = ["x", *(f"y{i}" for i in range(len(called)))]
        nodes = [
            helper.make_node(f, [names[i]], [names[i + 1]], domain="own" if f.startswith("F") else "")
            for i, f in enumerate(called)
        ]
        m.functions.append(helper.make_function("own", f"F{k}", ["x"], [names[-1]], nodes, imports))
    m.opset_import.add(domain="own", version=1)
    n = _node(m, r)
    n.op_type, n.domain = "F0", "own"


def recursive_function(m: ModelProto, r: random.Random) -> None:
    """A function that calls itself, at once or through others, or from a body of If."""
    kind = r.randrange(3)
    if kind == 0:
        _functions(m, r, [["F0"]])
    elif kind == 1:
        count = r.choice([2, 3, 40])
        _functions(m, r, [[f"F{(k + 1) % count}"] for k in range(count)])
    else:
        _functions(m, r, [["Neg"]])
        inner = helper.make_node("F0", ["x"], ["z"], domain="own")
        body = helper.make_graph([inner], "b", [], [onnx.ValueInfoProto(name="z")])
        m.functions[-1].node.append(helper.make_node("If", ["x"], ["w"], then_branch=body, else_branch=body))


def many_calls(m: ModelProto, r: random.Random) -> None:
    """Functions that each call the next one twice: few bytes, and without end when written out."""
    depth = r.choice([3, 10, 40])
    _functions(m, r, [*([f"F{k + 1}"] * 2 for k in range(depth)), ["Neg"]])


def wrong_function(m: ModelProto, r: random.Random) -> None:
    """A function of another arity, without what it promises, or with an attribute that nobody gives."""
    _functions(m, r, [["Neg"]])
    f = m.functions[-1]
    kind = r.randrange(6)
    if kind == 0:
        f.input.extend(["x", "more"])
    elif kind == 1:
        f.output.append(r.choice(["nowhere", "x", ""]))
    elif kind == 2:
        del f.node[:]
    elif kind == 3:
        a = f.node[0].attribute.add(name="alpha", type=AttributeProto.FLOAT)
        a.ref_attr_name = "unknown"
    elif kind == 4:
        f.name = r.choice(["", "F0", "Relu"])
        f.domain = ""
    else:
        m.functions.append(f)


def change_body(m: ModelProto, r: random.Random) -> None:
    """Inputs and outputs of a body that are no longer those that its node takes."""
    bodies = list(_bodies(m.graph.node))
    if not bodies:
        return add_loop(m, r)
    g = r.choice(bodies)
    ends = r.choice([g.input, g.output])
    kind = r.randrange(5)
    if kind == 0 and ends:
        del ends[r.randrange(len(ends))]
    elif kind == 1:
        ends.append(onnx.ValueInfoProto(name=r.choice(["", "more", *(v.name for v in ends)])))
    elif kind == 2 and ends:
        r.choice(ends).type.tensor_type.elem_type = r.randrange(0, 30)
    elif kind == 3 and ends:
        r.choice(ends).name = r.choice(["", "nowhere", m.graph.input[0].name])
    elif ends:
        r.choice(ends).type.tensor_type.shape.dim.add().dim_value = r.choice(NUMBERS)
    return None


def add_loop(m: ModelProto, r: random.Random) -> None:
    """A loop that runs for how long it likes, or a scan over axes that are not there."""
    info, b = helper.make_tensor_value_info, TensorProto.BOOL
    start = helper.make_tensor("start", TensorProto.FLOAT, [2], [1, 2])
    if r.random() < 0.7:
        nodes = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["s"], ["t"])]
        ins = [info("i", TensorProto.INT64, []), info("go", b, []), info("s", 1, r.choice([[2], None]))]
        body = helper.make_graph(nodes, "body", ins, [info("on", b, []), info("t", 1, None)])
        if r.random() < 0.5:
            body.output.append(info("t", 1, None))  # collected
        trips = helper.make_tensor("trips", TensorProto.INT64, [], [r.choice(NUMBERS)])
        count, go = r.choice([("trips", ""), ("", ""), ("trips", "go0")])
        m.graph.initializer.append(helper.make_tensor("go0", b, [], [1]))
        outputs = ["looped", "all"][: len(body.output) - 1]
        _give(m, helper.make_node("Loop", [count, go, "start"], outputs, body=body), trips, start)
    else:
        body = helper.make_graph(
            [helper.make_node("Neg", ["s"], ["t"])], "body", [info("s", 1, None)], [info("t", 1, None)]
        )
        node = helper.make_node(
            "Scan", ["start"], ["scanned"], body=body, num_scan_inputs=r.choice([0, 1, 2, -1])
        )
        if r.random() < 0.5:
            node.attribute.append(helper.make_attribute("scan_input_axes", [r.choice(NUMBERS)]))
        _give(m, node, start)


def add_huge(m: ModelProto, r: random.Random) -> None:
    """A few bytes that ask for values of any size, or of none that there can be."""
    sizes = [r.choice([*NUMBERS, 2**20, 2**32]) for _ in range(r.choice([1, 2, 3, 8]))]
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1])
    op = r.choice(["ConstantOfShape", "Expand", "Tile", "Reshape", "Range", "OneHot", "Pad", "Resize"])
    data = {"ConstantOfShape": [], "Range": []}.get(op, ["one"])
    if op == "Range":
        limits = [helper.make_tensor(f"r{k}", TensorProto.INT64, [], [r.choice(NUMBERS)]) for k in range(3)]
        node = helper.make_node(op, [t.name for t in limits], ["huge"])
        _give(m, node, *limits, dtype=TensorProto.INT64)
    elif op == "OneHot":
        two = helper.make_tensor("two", TensorProto.FLOAT, [2], [0, 1])
        _give(m, helper.make_node(op, ["sizes", "depth", "two"], ["huge"]), two, _ints("sizes", *sizes),
              _ints("depth", r.choice(NUMBERS)), rank=2)  # fmt: skip
    elif op == "Resize":
        _give(m, helper.make_node(op, ["one", "", "", "sizes"], ["huge"]), one, _ints("sizes", sizes[0]))
    else:
        if op == "Pad":
            sizes = (sizes * 2)[:2]
        rank = 1 if op in ("Tile", "Pad") else len(sizes)
        _give(m, helper.make_node(op, [*data, "sizes"], ["huge"]), one, _ints("sizes", *sizes), rank=rank)


def deep_chain(m: ModelProto, r: random.Random) -> None:
    """Nodes in a row, as many as no expression should be deep."""
    name = m.graph.input[0].name
    op = r.choice(["Neg", "Abs", "Relu", "Transpose", "Softmax", "Flatten"])
    for k in range(r.choice([100, 300, 1500])):
        m.graph.node.append(helper.make_node(op, [name], [f"deep{k}"]))
        name = f"deep{k}"
    made = m.graph.output.add(name=name)
    made.type.CopyFrom(m.graph.input[0].type)


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
    remove_interface, many_calls, wrong_function, change_body, change_body, add_loop, add_huge, add_huge,
    change_initializer,
)  # fmt: skip


def mutated(model: bytes, seed: int) -> bytes:
    """A model with one to three faults, or with damaged bytes."""
    r = random.Random(seed)
    if r.random() < 0.25:
        return _damaged(bytearray(model), r)
    proto = onnx.load_from_string(model)
    if r.random() < 0.01:
        deep_chain(proto, r)
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
