"""A loaded model to files that others open: plain state dicts, ONNX. It may import checkpoints, networks,
files and errors."""
