"""ONNX with a free batch, normalisation inside, by torch's own exporter, tried by ONNX Runtime.

onnx, onnxscript and onnxruntime come with `pip install 'pwoa-cli[onnx]'`.
"""
import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.files.atomic import atomic
from pwoa_cli.files.hashes import file_sha256
from pwoa_cli.machine.silence import quietly
from pwoa_cli.networks.build import raised

OPSET = 20  # of onnx 1.15 (2023): what ONNX Runtime 1.17 and later reads
INPUT, OUTPUT = "images", "logits"
NEEDS = ("onnx", "onnxscript", "onnxruntime")


def check_installed() -> None:
    """Raises: InputError, with the line that installs them, where one is missing."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--format onnx needs packages that are not installed: {', '.join(missing)}.",
                         hint="pip install 'pwoa-cli[onnx]'")


def save(model: nn.Module, path: Path, *, example: Tensor) -> int:
    """Write a model (eval mode, on the CPU) as a new ONNX file, whole or not at all; returns its bytes.

    Args: example: images (B, C, H, W), B above 1; C, H and W are fixed, the batch is free. The graph's input
    is `images` (float32, in [0,1]), its output `logits`. Raises: PwoaError where torch cannot export it.
    """
    batch = torch.export.Dim("batch")
    try:
        with quietly():  # in one thread at a time, which the exporter needs too
            program = torch.onnx.export(model, (example,), dynamo=True, input_names=[INPUT],
                                        output_names=[OUTPUT], dynamic_shapes=({0: batch},),
                                        opset_version=OPSET, verbose=False)
            assert program is not None  # no file was named
            with atomic(path, new=True) as temporary:
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


class Opened(nn.Module):
    """A file as a network: its logits are those that ONNX Runtime gives on the CPU for x (B, C, H, W) in
    [0,1].

    It has no gradient to give, and attacks would find nothing and call that robust. The backward pass is
    that of `like` at the same x: backward pass differentiable approximation (Athalye, Carlini, Wagner 2018,
    section 4.1), the gradient itself but for rounding.
    Args: like: the network that the file was made from. optimised: with kernels that do several layers at
    once; False: the operators as the format defines them. Raises: PwoaError if ONNX Runtime cannot open the
    file.
    """

    identity: Tensor

    def __init__(self, path: Path, like: nn.Module, *, optimised: bool = True):
        import onnxruntime

        super().__init__()
        self.like = like
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(str(path), options,
                                                         providers=["CPUExecutionProvider"])
        except Exception as error:  # of its own kinds
            raise PwoaError(f"ONNX Runtime does not take what torch {torch.__version__} exported: "
                            f"{raised(error)[:200]}") from error
        # what is kept of an unfinished evaluation is found by a network's tensors
        words = f"{file_sha256(path)} {onnxruntime.__version__}"
        self.register_buffer("identity", torch.tensor(list(words.encode())))

    def forward(self, x: Tensor) -> Tensor:
        found = torch.from_numpy(self._session.run(None, {INPUT: x.detach().contiguous().numpy()})[0])
        if not (torch.is_grad_enabled() and x.requires_grad):
            return found
        near = self.like(x)
        return near + (found - near).detach()
