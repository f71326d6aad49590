"""A loaded model in forms that others open and run: plain state dicts, ONNX, runtimes. It may import
checkpoints, networks, files, machine and errors."""
