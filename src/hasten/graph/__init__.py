"""Helpers on onnx_ir graphs: symbolic dims, rule matching, evaluation."""
