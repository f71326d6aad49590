"""ONNX with a free batch, normalisation inside, by torch's own exporter, tried by ONNX Runtime.

onnx, onnxscript and onnxruntime come with `pip install 'pwoa-cli[onnx]'`.
"""
import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.files.atomic import atomic
from pwoa_cli.networks.build import raised

OPSET = 20  # of onnx 1.15 (2023): what ONNX Runtime 1.17 and later reads
NEEDS = ("onnx", "onnxscript", "onnxruntime")


def check_installed() -> None:
    """Raises: InputError, with the line that installs them, where one is missing."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--format onnx needs packages that are not installed: {', '.join(missing)}.",
                         hint="pip install 'pwoa-cli[onnx]'")


def save(model: nn.Module, path: Path, *, example: Tensor) -> int:
    """Write a model (eval mode, on the CPU) as ONNX, whole or not at all; returns its bytes.

    Args: example: images (B, C, H, W), B above 1; C, H and W are fixed, the batch is free. The graph's input
    is `images` (float32, in [0,1]), its output `logits`. Raises: PwoaError where torch cannot export it.
    """
    batch = torch.export.Dim("batch")
    quiet = io.StringIO()
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(quiet), _no_logging():
            program = torch.onnx.export(model, (example,), dynamo=True, input_names=["images"],
                                        output_names=["logits"], dynamic_shapes=({0: batch},),
                                        opset_version=OPSET, verbose=False)
            assert program is not None  # no file was named
            with atomic(path) as temporary:
                program.save(str(temporary))
    except PwoaError:  # of the disk
        raise
    except Exception as error:  # torch's exporter raises many kinds, of its own and of the network's
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise PwoaError(f"torch cannot export this network to ONNX: {raised(cause)[:200]}.",
                        hint="--format dense writes a state dict for its own code.") from error
    return path.stat().st_size


def difference(path: Path, model: nn.Module, images: Tensor, *, batch_size: int = 50) -> float:
    """The largest difference between the logits that ONNX Runtime and the model give for images
    (N, C, H, W). Raises: PwoaError if ONNX Runtime cannot open the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of its own kinds
        raise PwoaError(f"ONNX Runtime does not take what torch {torch.__version__} exported: "
                        f"{raised(error)[:200]}") from error
    largest = 0.0
    with torch.no_grad():
        for x in images.split(batch_size):
            found, = session.run(None, {"images": x.numpy()})
            largest = max(largest, float((torch.from_numpy(found) - model(x)).abs().max()))
    return largest


@contextlib.contextmanager
def _no_logging() -> Iterator[None]:
    """Without what torch logs of its own attempts; what fails is an exception too."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
