"""From any framework to one onnx_ir model."""
