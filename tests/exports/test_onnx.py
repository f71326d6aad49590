"""ONNX files with a free batch, and what torch's own tools make of what `pwoa_cli.load` returns."""
import importlib.util
import logging
import sys
import threading
import warnings

import pytest
import torch
from helpers import small_models as small
from helpers.family_checks import SIZES, trained

import pwoa_cli
from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.exports import onnx
from pwoa_cli.networks.build import Normalized
from pwoa_cli.networks.families import FAMILIES


@pytest.fixture(params=SIZES)
def loaded(request, tmp_path):
    """A network of each family, as `pwoa_cli.load` returns it, and images for it."""
    torch.manual_seed(0)
    torch.save(trained(FAMILIES[request.param].make(**SIZES[request.param])).state_dict(), tmp_path / "m.pt")
    model = pwoa_cli.load(tmp_path / "m.pt")
    shape = next(shape for shape in ((3, 32, 32), (1, 28, 28), (1, 32, 32)) if takes(model, shape))
    return model, torch.rand(3, *shape)


def takes(model, shape):
    try:
        return model(torch.zeros(2, *shape)).ndim == 2
    except RuntimeError:
        return False


def test_no_family_is_forgotten():
    assert SIZES.keys() == FAMILIES.keys()


def test_torch_exports_and_traces_every_family_with_a_free_batch(loaded):
    model, x = loaded
    want = model(x)
    program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    assert torch.allclose(program(x), want, atol=1e-5)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), want) and traced(x[:1]).shape == want[:1].shape


def test_torch_quantises_every_family(loaded):
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    model, x = loaded
    with warnings.catch_warnings(action="ignore"):  # torch says that it moves to torchao
        ready = prepare_fx(model, get_default_qconfig_mapping("x86"), (x,))
        ready(x)
        whole = convert_fx(ready)
    assert whole(x).shape == whole(torch.cat([x, x]))[:3].shape == model(x).shape


def test_onnx_runtime_gives_the_same_logits_for_any_batch(tmp_path):
    torch.manual_seed(0)
    net = trained(small.resnet())
    x = torch.rand(70, 3, 8, 8)
    model = Normalized(net, (0.4, 0.5, 0.4), (0.3, 0.2, 0.3), num_classes=small.CLASSES).eval()
    size = onnx.save(model, tmp_path / "m.onnx", example=x[:2])
    assert size == (tmp_path / "m.onnx").stat().st_size
    opened = onnx.Opened(tmp_path / "m.onnx", model)
    found = torch.cat([opened(part) for part in x.split(64)])
    assert torch.allclose(found, model(x), atol=1e-4)
    wrong = Normalized(net, (0.5, 0.5, 0.5), (0.3, 0.2, 0.3), num_classes=small.CLASSES).eval()
    assert not torch.allclose(found, wrong(x), atol=1e-2)  # the normalisation inside is tried too


def test_what_cannot_be_exported_is_one_sentence_and_leaves_nothing(tmp_path, capfd):
    class Odd(torch.nn.Module):
        def forward(self, x):
            raise ValueError("a network that cannot\nrun")

    capfd.readouterr()
    with pytest.raises(PwoaError, match="to ONNX: ValueError: a network that cannot.$") as caught:
        onnx.save(Normalized(Odd()).eval(), tmp_path / "m.onnx", example=torch.rand(2, 1, 8, 8))
    assert "\n" not in caught.value.message and not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_what_breaks_while_it_is_written_or_opened_is_one_sentence(tmp_path, monkeypatch):
    """As torch 2.7 does with an onnxscript that does not know it."""
    class Program:
        def save(self, path):
            raise TypeError("Expected an int, got a boolean.\nmore")

    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: Program())
    path = tmp_path / "m.onnx"
    with pytest.raises(PwoaError, match="^torch cannot export .*: TypeError: Expected an int, got [^\n]+$"):
        onnx.save(small.lenet(), path, example=torch.rand(2, 1, 8, 8))
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"no model")
    with pytest.raises(PwoaError, match="^ONNX Runtime does not take what torch .* exported: [^\n]+$"):
        onnx.Opened(path, small.lenet())


def test_a_missing_package_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(InputError, match="not installed: onnxscript") as caught:
        onnx.check_installed()
    assert caught.value.hint == "pip install 'pwoa-cli[onnx]'"


def test_threads_export_at_once_and_give_stdout_and_logging_back(tmp_path):
    """torch's exporter broke in each of them; where two overlapped, stdout and logging were dead."""
    stdout, done = sys.stdout, {}
    together = threading.Barrier(3)

    def save(number):
        together.wait(60)
        done[number] = onnx.save(small.lenet(), tmp_path / f"{number}.onnx", example=torch.rand(2, 1, 8, 8))

    threads = [threading.Thread(target=save, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert sorted(done) == [0, 1, 2] and len(set(done.values())) == 1
    assert sys.stdout is stdout and logging.root.manager.disable == logging.NOTSET
