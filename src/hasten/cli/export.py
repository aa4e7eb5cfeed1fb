"""`hasten export`."""

from __future__ import annotations

from pathlib import Path

import click

from hasten.backends.graph_members import whole_graph
from hasten.cli.console import check_apart, check_new, echo_json, size, write_file
from hasten.cli.options import artifact_argument, json_option, overwrite_option
from hasten.graph.oldest import stamp_oldest
from hasten.runtime.artifact import read_artifact

_EXAMPLES = """\b
Examples:
  hasten optimize model.onnx --data samples.npz -o model.hasten
  hasten export model.hasten quantized.onnx
"""


@click.command(epilog=_EXAMPLES, short_help="Write the graph of an artifact as ONNX, for other engines.")
@artifact_argument
@click.argument("output", metavar="MODEL.onnx", type=click.Path(path_type=Path))
@overwrite_option
@json_option
def export(artifact: Path, output: Path, overwrite: bool, as_json: bool) -> None:
    """Write the graph of OUT.hasten, with its weights, as an ONNX model.

    It is the graph that was compiled, or that another engine runs: operators are fused as ONNX has them, and
    layers in int8 are between QuantizeLinear and DequantizeLinear. Artifacts of `hasten optimize` have it,
    and those of `hasten compile --keep-graph`.

    The model is of the oldest opset, from 21 on, that has its operators, and the command says which: ONNX
    Runtime 1.20 reads 21; Attention, RotaryEmbedding and RMSNormalization need 23 or more.
    """
    check_apart({"MODEL.onnx": output}, (artifact,))
    check_new((output,), overwrite=overwrite)
    proto = whole_graph(read_artifact(artifact, verify="never"))
    stamp_oldest(proto)
    content = proto.SerializeToString()
    write_file(output, content)
    quantized = sum(node.op_type == "QuantizeLinear" for node in proto.graph.node)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if as_json:
        echo_json(
            {
                "path": str(output),
                "bytes": len(content),
                "opset": opset,
                "nodes": len(proto.graph.node),
                "quantized_values": quantized,
            }
        )
        return
    click.echo(
        f"{output}: {size(len(content))}, {len(proto.graph.node)} nodes, opset {opset}, "
        f"{quantized} values quantized"
    )
