"""How a node is called in messages to people."""

import onnx_ir as ir


def describe_node(node: ir.Node) -> str:
    """Return a short name of a node, such as `MatMul 'encoder.layer.0.attention'`.

    Args:
        node: Any node. One without a name is called by its first output.

    Returns:
        The operator (with its domain unless that is ONNX's own) and the name in quotes.
    """
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    name = node.name or next((value.name for value in node.outputs if value.name), None)
    return f"{operator} '{name}'" if name else operator
