"""ONNX with 8-bit integers, as runtimes of small devices take it: weights with a scale for each output
channel, activations with the range that they have on training images, by ONNX Runtime's own static
quantisation (QuantizeLinear and DequantizeLinear around every layer).
"""
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pwoa_cli.errors import PwoaError
from pwoa_cli.exports import onnx
from pwoa_cli.files.atomic import atomic
from pwoa_cli.files.folders import temporary_folder
from pwoa_cli.machine.silence import quietly
from pwoa_cli.networks.build import raised

CALIBRATION = 512  # training images, at most, whose activations say the ranges
SPLIT = 16  # images at once


def save(model: nn.Module, path: Path, *, images: Tensor) -> int:
    """Write a model (eval mode, on the CPU) as a new ONNX file of 8-bit integers, whole or not at all;
    returns its bytes.

    Weights are int8, symmetric (0 stays 0); activations uint8. The logits stay float32: in steps of a
    255th of their range, classes would tie. Input and output as of `onnx.save`.
    Args: images: (N, C, H, W) in [0,1], N above 1, never those that accuracy is measured on: their smallest
    and largest activations are the ranges, beyond which others are cut off.
    Raises: PwoaError where torch cannot export the model, ONNX Runtime cannot quantise it, or a disk is full.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """The images, a part at a time, as ONNX Runtime asks for them."""

        def __init__(self) -> None:
            self.parts = iter(images.split(SPLIT))

        def get_next(self) -> dict[str, Any] | None:
            part = next(self.parts, None)
            return None if part is None else {onnx.INPUT: part.numpy()}

    with temporary_folder() as folder:
        plain, ready, made = (folder / f"{name}.onnx" for name in ("plain", "ready", "made"))
        onnx.save(model, plain, example=images[:2])
        try:
            with quietly():
                # torch's exporter has said the shapes; the symbolic inference knows fewer networks
                quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
                quantize_static(
                    str(ready), str(made), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                    extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]})
            content = made.read_bytes()
        except OSError:  # of the disk: it has more files of its own there
            raise
        except Exception as error:  # of its own many kinds
            raise PwoaError(f"ONNX Runtime cannot quantise this network: {raised(error)[:200]}.",
                            hint="--format onnx writes it in float32.") from error
    with atomic(path, new=True) as temporary:
        temporary.write_bytes(content)
    return len(content)


def other_classes(path: Path, model: nn.Module, images: Tensor) -> int:
    """On how many images (N, C, H, W) the integer kernels of this machine name another class than the
    format's own arithmetic does: those of some processors cut large sums off.

    Args: model: the network that the file was made from. Raises: PwoaError as `onnx.Opened`.
    """
    kernels, exact = (onnx.Opened(path, model, optimised=optimised) for optimised in (True, False))
    return sum(int((kernels(x).argmax(1) != exact(x).argmax(1)).sum()) for x in images.split(SPLIT))
