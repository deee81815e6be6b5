"""Layers that become the operators of ONNX that its runtimes have fast kernels for."""
