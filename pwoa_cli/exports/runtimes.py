"""Ways to run a model here, one function each: (model in eval mode, images (B, C, H, W)) -> a call that
does one pass. What is not to be had raises `Unavailable` with the reason."""
import importlib.util
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from pwoa_cli.exports import onnx, quantised
from pwoa_cli.files.folders import temporary_folder
from pwoa_cli.machine.devices import multiplies_bf16

Ready = Callable[[], object]
COMPILED = 1000  # models and batch sizes in a process


class Unavailable(Exception):
    """A runtime that is not to be had here, and why."""


def eager(model: nn.Module, x: Tensor) -> Ready:
    """As `pwoa_cli.load` gives it."""
    return lambda: model(x)


def channels_last(model: nn.Module, x: Tensor) -> Ready:
    """Memory by channels last, which convolutions of some machines prefer."""
    model = deepcopy(model).to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    return lambda: model(x)


def compiled(model: nn.Module, x: Tensor) -> Ready:
    """torch.compile with its default mode, for this size of batch."""
    import torch._dynamo.config as limits

    fast = torch.compile(deepcopy(model), dynamic=False)
    # beyond a few models and sizes it would quietly leave the rest as it is
    with (torch.no_grad(), warnings.catch_warnings(action="ignore"),
          limits.patch(cache_size_limit=COMPILED, accumulated_cache_size_limit=COMPILED)):
        fast(x)
    return lambda: fast(x)


def bf16(model: nn.Module, x: Tensor) -> Ready:
    """Weights and images in bfloat16, where the device has instructions for it."""
    if not multiplies_bf16(x.device):
        raise Unavailable(f"{x.device.type} has no instructions for bfloat16, or does not tell")
    model, x = deepcopy(model).to(torch.bfloat16), x.to(torch.bfloat16)
    return lambda: model(x)


def onnx_runtime(model: nn.Module, x: Tensor) -> Ready:
    """ONNX Runtime on its CPU, of the file that `pwoa export` writes."""
    return _of_file(model, x, lambda path: onnx.save(model, path, example=torch.zeros(2, *x.shape[1:])))


def onnx_int8(model: nn.Module, x: Tensor) -> Ready:
    """ONNX Runtime on its CPU, of the file with 8-bit integers that `pwoa export` writes: time does not
    depend on its scales, which random images give here."""
    return _of_file(model, x, lambda path: quantised.save(model, path, images=torch.rand(8, *x.shape[1:])))


def _of_file(model: nn.Module, x: Tensor, save: Callable[[Path], int]) -> Ready:
    if x.device.type != "cpu":
        raise Unavailable("it is tried on the CPU alone")
    onnx.check_installed()
    with temporary_folder() as folder:
        path = folder / "m.onnx"
        save(path)
        opened = onnx.Opened(path, model)
    return lambda: opened(x)


def openvino(model: nn.Module, x: Tensor) -> Ready:
    """OpenVINO on its CPU, if it is installed."""
    if x.device.type != "cpu":
        raise Unavailable("it is tried on the CPU alone")
    if importlib.util.find_spec("openvino") is None:
        raise Unavailable("pip install openvino")
    import openvino as ov

    with warnings.catch_warnings(action="ignore"):  # of what it asks of torch
        converted = ov.convert_model(deepcopy(model), example_input=x)
    made = ov.compile_model(converted, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    array = x.numpy()
    return lambda: made(array)


def two_of_four(model: nn.Module, x: Tensor) -> Ready:
    """NVIDIA's kernels for two zeros in four, in float16, for linear layers whose weights are so."""
    if x.device.type != "cuda":
        raise Unavailable("NVIDIA GPUs alone have these kernels")
    from torch.sparse import to_sparse_semi_structured

    model, x, found = deepcopy(model).half(), x.half(), 0
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer.in_features % 4 == 0 and (
                (layer.weight.view(-1, 4) != 0).sum(1) <= 2).all():
            layer.weight = nn.Parameter(to_sparse_semi_structured(layer.weight.detach()), requires_grad=False)
            found += 1
    if not found:
        raise Unavailable("no linear layer has two zeros in every four weights")
    return lambda: model(x)


RUNTIMES: dict[str, Callable[[nn.Module, Tensor], Ready]] = {
    "eager": eager, "channels-last": channels_last, "compile": compiled, "bf16": bf16, "onnx": onnx_runtime,
    "onnx-int8": onnx_int8, "openvino": openvino, "2:4": two_of_four}


def synced(call: Ready, device: torch.device) -> Ready:
    """Done when the device is done."""
    if device.type != "cuda":
        return call

    def both() -> None:
        call()
        torch.cuda.synchronize(device)

    return both
