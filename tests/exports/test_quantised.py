"""ONNX of 8-bit integers: against the closed form, and as a network under attack."""
import errno
import os
import tempfile

import numpy as np
import pytest
import torch
from helpers import small_models as small
from helpers.family_checks import trained
from torch import nn

from pwoa_cli.errors import PwoaError
from pwoa_cli.evaluation.evaluate import evaluate
from pwoa_cli.evaluation.words import WORST
from pwoa_cli.exports import onnx, quantised
from pwoa_cli.networks.build import Normalized


def images(n, *shape, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def linear():
    """A linear network with half of its weights zero, and rows of sizes from 1 to 1000."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with torch.no_grad():
        net[1].weight[:, ::2] = 0
        net[1].weight *= torch.tensor([1.0, 10, 100, 1000])[:, None]
    return net.eval()


def test_a_linear_network_gives_the_closed_form(tmp_path):
    net, x = linear(), images(50, 1, 8, 8) * 0.9
    quantised.save(net, tmp_path / "m.onnx", images=x)
    weight, bias = net[1].weight.detach(), net[1].bias.detach()
    step = weight.abs().amax(1, keepdim=True) / 127
    rounded = (weight / step).round() * step
    low, high = min(0.0, float(x.min())), float(x.max())
    unit = (high - low) / 255
    zero = round(-low / unit)
    other = images(20, 1, 8, 8, seed=1)  # some beyond the range: cut off
    pixels = ((other / unit).round() + zero).clamp(0, 255).sub(zero) * unit
    biases = (bias / (unit * step.flatten())).round() * unit * step.flatten()
    want = pixels.flatten(1).double() @ rounded.double().T + biases.double()
    for optimised in (True, False):
        found = onnx.Opened(tmp_path / "m.onnx", net, optimised=optimised)(other)
        assert torch.allclose(found.double(), want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    assert not torch.allclose(net(other).double(), want, rtol=1e-4, atol=1e-4)


def test_weights_are_signed_bytes_and_zeros_stay(tmp_path):
    import onnx as library

    net = linear()
    size = quantised.save(net, tmp_path / "m.onnx", images=images(20, 1, 8, 8))
    graph = library.load(str(tmp_path / "m.onnx")).graph
    tensors = {t.name: library.numpy_helper.to_array(t) for t in graph.initializer}
    weights = [t for t in tensors.values() if t.dtype == np.int8 and t.size == 256]
    assert len(weights) == 1 and size == (tmp_path / "m.onnx").stat().st_size
    there = weights[0] if weights[0].shape == (4, 64) else weights[0].T
    assert (there[:, ::2] == 0).all() and (np.abs(there).max(1) == 127).all()


@pytest.fixture
def made(tmp_path):
    """A trained convolutional network with batch norms, its file, and images."""
    model = Normalized(trained(small.resnet()), (0.4, 0.5, 0.4), (0.3, 0.2, 0.3)).eval()
    quantised.save(model, tmp_path / "m.onnx", images=images(40, 3, 8, 8))
    return model, tmp_path / "m.onnx", images(70, 3, 8, 8, seed=1)


def test_logits_are_near_for_any_batch_and_not_in_steps(made):
    model, path, x = made
    opened = onnx.Opened(path, model)
    with torch.no_grad():
        near, found = model(x), opened(x)
    assert 0 < float((found - near).abs().max()) < 0.1 * float(near.std()) + 0.05
    assert torch.allclose(torch.cat([opened(part) for part in x.split(1)]), found, atol=1e-5)
    assert len(found.unique()) > 256  # of 280 logits
    assert quantised.other_classes(path, model, x) == 0


def test_the_backward_pass_is_that_of_the_float_network(made):
    model, path, x = made
    opened, x = onnx.Opened(path, model), x[:5].clone().requires_grad_()
    found = opened(x)
    with torch.no_grad():
        assert torch.allclose(found, opened(x), atol=1e-6)
    want, = torch.autograd.grad(model(x)[:, 0].sum(), x)
    got, = torch.autograd.grad(found[:, 0].sum(), x)
    assert torch.equal(got, want) and got.abs().sum() > 0


def test_attacks_break_the_file_where_they_break_the_network(tmp_path):
    model = Normalized(small.learn(small.lenet())).eval()
    pictures, labels = small.images(200)
    x, y = torch.tensor(pictures).permute(0, 3, 1, 2).float() / 255, torch.tensor(labels)
    quantised.save(model, tmp_path / "m.onnx", images=x[100:])
    threat = {"norm": "linf", "eps": 0.2, "seed": 0}
    before, after = (evaluate(net, x[:100], y[:100], attacks="pgd,cw", **threat)
                     for net in (model, onnx.Opened(tmp_path / "m.onnx", model)))
    assert before["clean"].accuracy > 0.9 > before[WORST].accuracy + 0.2
    for name in ("clean", "pgd-20", "cw", WORST):
        assert abs(after[name].accuracy - before[name].accuracy) < 0.1, name


def test_classes_that_the_kernels_name_by_themselves_are_counted(made, monkeypatch):
    model, path, x = made

    class Saturated(onnx.Opened):
        def __init__(self, path, like, *, optimised=True):
            super().__init__(path, like, optimised=optimised)
            self.flips = optimised

        def forward(self, x):
            found = super().forward(x)
            return -found if self.flips else found

    monkeypatch.setattr(onnx, "Opened", Saturated)
    assert quantised.other_classes(path, model, x) == len(x)


def test_the_same_images_give_the_same_bytes(made, tmp_path):
    model, path, _ = made
    quantised.save(model, tmp_path / "again.onnx", images=images(40, 3, 8, 8))
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_what_cannot_be_quantised_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, capfd):
    import onnxruntime.quantization as library

    def fails(*args, **kwargs):
        raise ValueError("an operator that\nhas no integers")

    monkeypatch.setattr(library, "quantize_static", fails)
    capfd.readouterr()
    with pytest.raises(PwoaError, match="^ONNX Runtime cannot quantise this network: ValueError: [^\n]+$"):
        quantised.save(linear(), tmp_path / "m.onnx", images=images(20, 1, 8, 8))
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


def test_a_full_disk_of_temporary_files_is_not_the_networks_fault(tmp_path, monkeypatch):
    import onnxruntime.quantization as quantization
    import onnxruntime.quantization.shape_inference as library

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for place, name in ((library, "quant_pre_process"), (quantization, "quantize_static"),
                        (torch.onnx.ONNXProgram, "save"), (tempfile, "mkdtemp")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            with pytest.raises(PwoaError, match="^The folder of temporary files, .*: No space") as caught:
                quantised.save(linear(), tmp_path / "m.onnx", images=images(20, 1, 8, 8))
        assert "TMPDIR=" in caught.value.hint and not list(tmp_path.iterdir())
    with pytest.raises(PwoaError, match=r"absent/m.onnx cannot be written: No such file") as caught:
        quantised.save(linear(), tmp_path / "absent/m.onnx", images=images(20, 1, 8, 8))
    assert "TMPDIR" not in caught.value.hint


def test_nothing_is_printed(tmp_path, capfd):
    capfd.readouterr()
    quantised.save(linear(), tmp_path / "m.onnx", images=images(20, 1, 8, 8))
    assert capfd.readouterr() == ("", "")
