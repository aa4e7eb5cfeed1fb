"""Making a graph smaller on which hasten differs, as long as it still does."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.shape_inference
from onnx import numpy_helper
from tests.differential.compare import Tolerance
from tests.differential.graph import Graph, reads
from tests.differential.peers import all_values

CANDIDATES = 48
"""Smaller graphs that are tried at once: as parts of one object they take hardly longer than one."""

Fails = Callable[[Sequence[Graph]], list[bool]]


def shrink(graph: Graph, fails: Fails, rounds: int = 40) -> Graph:
    """The smallest graph found that still fails.

    Args:
        graph: one that fails.
        fails: for some graphs, whether each fails in the same way.
        rounds: the most steps.
    """
    for _ in range(rounds):
        candidates = sorted(_smaller(graph), key=_weight)
        for start in range(0, len(candidates), CANDIDATES):
            tried = candidates[start : start + CANDIDATES]
            found = next((g for g, bad in zip(tried, fails(tried), strict=True) if bad), None)
            if found is not None:
                break
        else:
            return graph
        graph = found
    return graph


def _weight(g: Graph) -> tuple[int, ...]:
    proto = g.model.graph
    elements = sum(a.size for f in g.feeds for a in f.values())
    return len(proto.node), len(g.feeds), len(proto.output), len(proto.input), elements


def _smaller(g: Graph) -> Iterator[Graph]:
    """Graphs that lack something of this one."""
    proto = g.model.graph
    if len(g.feeds) > 1:
        yield from (replace(g, feeds=(f,)) for f in g.feeds)
        return
    if len(proto.output) > 1:
        yield from (_with_outputs(g, [o]) for o in proto.output)
        return
    types = _types(g)
    (output,) = proto.output
    for node in proto.node:
        for name in node.output:
            if name in types and name != output.name:
                yield _with_outputs(g, [types[name]])
    yield from _cuts(g, types)
    yield from _bypasses(g, types)
    yield from _shorter(g)


def _types(g: Graph) -> dict[str, onnx.ValueInfoProto]:
    inferred = onnx.shape_inference.infer_shapes(g.model, data_prop=True).graph
    return {
        v.name: v
        for v in (*inferred.value_info, *inferred.output)
        if v.name and v.type.tensor_type.HasField("shape")
    }


def _with_outputs(g: Graph, outputs: Sequence[onnx.ValueInfoProto]) -> Graph:
    model = _copy(g.model)
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    return _pruned(replace(g, model=model))


def _cuts(g: Graph, types: dict[str, onnx.ValueInfoProto]) -> Iterator[Graph]:
    """A value in the middle becomes an input that holds what it held."""
    values = all_values(g.model, g.feeds[0])
    for name in values:
        if name not in types or name in {o.name for o in g.model.graph.output}:
            continue
        cut = _copy(g.model)
        nodes = [n for n in cut.graph.node if name not in n.output]
        del cut.graph.node[:]
        cut.graph.node.extend(nodes)
        cut.graph.input.append(types[name])
        yield _pruned(replace(g, model=cut, feeds=({**g.feeds[0], name: values[name]},)))


def _bypasses(g: Graph, types: dict[str, onnx.ValueInfoProto]) -> Iterator[Graph]:
    """A node goes, and what it made is one of its operands."""
    known = {**types, **{v.name: v for v in g.model.graph.input}}
    for k, node in enumerate(g.model.graph.node):
        for name in node.input:
            if len(node.output) != 1 or name not in known or node.output[0] not in known:
                continue
            if known[name].type != known[node.output[0]].type:
                continue
            model = _copy(g.model)
            del model.graph.node[k]
            for other in model.graph.node:
                for at, read in enumerate(other.input):
                    if read == node.output[0]:
                        other.input[at] = name
            if node.output[0] not in {o.name for o in model.graph.output}:
                yield _pruned(replace(g, model=model))


def _shorter(g: Graph) -> Iterator[Graph]:
    """Symbolic sizes take smaller values."""
    sizes: dict[str, list[tuple[str, int]]] = {}
    for value in g.model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                sizes.setdefault(dim.dim_param, []).append((value.name, axis))
    for places in sizes.values():
        length = g.feeds[0][places[0][0]].shape[places[0][1]]
        for shorter in {1, 2, length // 2, length - 1}:
            if 0 < shorter < length:
                feeds = dict(g.feeds[0])
                for name, axis in places:
                    feeds[name] = np.take(feeds[name], range(shorter), axis)
                yield replace(g, feeds=(feeds,))


def _pruned(g: Graph) -> Graph:
    """Without what no output needs."""
    model = _copy(g.model)
    needed = {o.name for o in model.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(reads(node))
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    for group in (model.graph.input, model.graph.initializer):
        left = [v for v in group if v.name in needed]
        del group[:]
        group.extend(left)
    feeds = tuple({n: a for n, a in f.items() if n in needed} for f in g.feeds)
    return replace(g, model=model, feeds=feeds)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def write(path: Path, graph: Graph) -> None:
    """Writes a graph and its inputs as one file, a zip of ONNX protobufs."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.onnx", graph.model.SerializeToString())
        for k, feeds in enumerate(graph.feeds):
            for name, array in feeds.items():
                archive.writestr(f"{k}/{name}.pb", numpy_helper.from_array(array, name).SerializeToString())
        lines = [f"{n} {t.exact:d} {t.epsilon!r}" for n, t in graph.tolerances.items()]
        archive.writestr("tolerances.txt", "\n".join(lines))


def read(path: Path) -> Graph:
    """What `write` wrote."""
    feeds: dict[int, dict[str, np.ndarray]] = {}
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        model = onnx.load_from_string(archive.read("model.onnx"))
        for name in archive.namelist():
            if name.endswith(".pb"):
                tensor = onnx.TensorProto.FromString(archive.read(name))
                feeds.setdefault(int(name.split("/")[0]), {})[tensor.name] = numpy_helper.to_array(tensor)
        lines = [line.split() for line in archive.read("tolerances.txt").decode().splitlines()]
    tolerances = {n: Tolerance(e == "1", float(x)) for n, e, x in lines}
    return Graph(0, model, tuple(feeds[k] for k in sorted(feeds)) or ({},), tolerances)
