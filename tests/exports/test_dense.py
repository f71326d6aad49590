"""Dense state dicts: what stock torch loads, and the envelope of a checkpoint with other weights in it."""
import pytest
import safetensors.torch
import torch
from helpers import small_models as small

from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.errors import InputError
from pwoa_cli.exports import dense


def same(found, net, *, prefix="", dtype=None):
    state = net.state_dict()
    assert list(found) == [prefix + name for name in state]
    assert all(torch.equal(found[prefix + name], t.to(dtype) if dtype and t.is_floating_point() else t)
               for name, t in state.items())


@pytest.mark.parametrize("ending", dense.ENDINGS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_stock_torch_loads_it(tmp_path, ending, dtype, prefix):
    net = small.resnet()
    path = tmp_path / f"m{ending}"
    assert dense.save(net, path, dtype=dtype, prefix=prefix) == path.stat().st_size
    once = path.read_bytes()
    path.unlink()
    dense.save(net, path, dtype=dtype, prefix=prefix)
    assert path.read_bytes() == once  # the same bytes again
    found = (safetensors.torch.load_file(path) if ending == ".safetensors"
             else torch.load(path, weights_only=True))
    if ending == ".safetensors":  # sorted by safetensors
        found = {prefix + name: found[prefix + name] for name in net.state_dict()}
    same(found, net, prefix=prefix, dtype=dtype)
    again = torch.nn.ModuleDict({"module": small.resnet()}) if prefix else small.resnet()
    again.load_state_dict(found)


def envelope(net):
    return {"epoch": 7, "state_dict": {f"module.{name}": t for name, t in net.state_dict().items()} | {
        "module.n_averaged": torch.tensor(3)}, "optimizer": {"state": {0: {"step": torch.tensor(9.0)}}},
        "args": {"lr": 0.1, "eps": [1, 2]}}


def test_the_envelope_of_a_checkpoint_stays(tmp_path):
    before, after = small.resnet(), small.learn(small.resnet(), channels=3, seed=1, steps=2).eval()
    torch.save(envelope(before), tmp_path / "before.pt")
    dense.save(after, tmp_path / "after.pt", like=Source(str(tmp_path / "before.pt")))
    found = torch.load(tmp_path / "after.pt", weights_only=True)
    assert found["epoch"] == 7 and found["args"] == {"lr": 0.1, "eps": [1, 2]}
    assert found["optimizer"] == {"state": {0: {"step": torch.tensor(9.0)}}}
    weights = found["state_dict"]
    assert weights.pop("module.n_averaged") == 3
    same(weights, after, prefix="module.")
    again = load_model(tmp_path / "after.pt").model
    x = torch.rand(4, 3, 8, 8)
    assert torch.equal(again(x), after(x)) and not torch.equal(again(x), before.eval()(x))
    dense.save(after, tmp_path / "flat.safetensors", like=Source(str(tmp_path / "before.pt")))
    assert safetensors.torch.load_file(tmp_path / "flat.safetensors").keys() == {
        *weights, "module.n_averaged"}


def test_normalisation_buffers_and_half_precision_stay(tmp_path):
    net = small.resnet().half().float()
    state = {f"1.{name}": t.half() if t.is_floating_point() else t for name, t in net.state_dict().items()}
    mean, std = torch.full((3, 1, 1), 0.4), torch.full((3, 1, 1), 0.2)
    torch.save({"0.mean": mean, "0.std": std, **state}, tmp_path / "before.pt")
    dense.save(net, tmp_path / "after.pt", like=Source(str(tmp_path / "before.pt")))
    found = torch.load(tmp_path / "after.pt", weights_only=True)
    assert torch.equal(found.pop("0.mean"), mean) and torch.equal(found.pop("0.std"), std)
    same(found, net, prefix="1.", dtype=torch.float16)
    assert load_model(tmp_path / "after.pt").mean == pytest.approx((0.4,) * 3)
    dense.save(net, tmp_path / "wide.pt", like=Source(str(tmp_path / "before.pt")), dtype=torch.float32)
    assert torch.load(tmp_path / "wide.pt", weights_only=True)["1.conv1.weight"].dtype == torch.float32


def test_half_precision_that_would_round_the_weights_does_not_stay(tmp_path):
    """What is written without --dtype is what the model is, bit for bit."""
    net = small.resnet()
    torch.save({k: t.half() if t.is_floating_point() else t for k, t in small.resnet().state_dict().items()},
               tmp_path / "before.pt")
    dense.save(net, tmp_path / "after.pt", like=Source(str(tmp_path / "before.pt")))
    same(torch.load(tmp_path / "after.pt", weights_only=True), net)
    dense.save(net, tmp_path / "half.pt", like=Source(str(tmp_path / "before.pt")), dtype=torch.float16)
    same(torch.load(tmp_path / "half.pt", weights_only=True), net, dtype=torch.float16)


@pytest.mark.parametrize("shared", [True, False])
def test_what_lies_twice_in_an_envelope_is_new_in_both_places(tmp_path, shared):
    """MadryLab's attacker holds the model again: load_state_dict fills one module from both, in this
    order."""
    before, after = small.resnet(), small.learn(small.resnet(), channels=3, seed=1, steps=2).eval()
    state = before.state_dict()
    again = before.state_dict() if shared else {name: t.clone() for name, t in state.items()}
    torch.save({"model": {f"module.model.{name}": t for name, t in state.items()}
                | {f"module.attacker.model.{name}": t for name, t in again.items()}}, tmp_path / "before.pt")
    dense.save(after, tmp_path / "after.pt", like=Source(str(tmp_path / "before.pt")))
    module = torch.nn.Module()
    module.model, module.attacker = small.resnet(), torch.nn.Module()
    module.attacker.model = module.model
    torch.nn.ModuleDict({"module": module}).load_state_dict(
        torch.load(tmp_path / "after.pt", weights_only=True)["model"])
    x = torch.rand(4, 3, 8, 8)
    assert torch.equal(module.model.eval()(x), after(x))


def test_an_average_beside_the_model_is_not_what_a_flat_file_gets(tmp_path):
    before, after = small.resnet(), small.learn(small.resnet(), channels=3, seed=1, steps=2).eval()
    torch.save({"state_dict_ema": {k: t * 0.5 for k, t in before.state_dict().items()},
                "state_dict": before.state_dict()}, tmp_path / "before.pt")
    like = Source(str(tmp_path / "before.pt"), entry="state_dict")
    dense.save(after, tmp_path / "flat.safetensors", like=like)
    found = safetensors.torch.load_file(tmp_path / "flat.safetensors")
    assert all(torch.equal(found[name], t) for name, t in after.state_dict().items())


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    torch.save(small.resnet(num_classes=7).state_dict(), tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"is no checkpoint of the same network: \S+ is \(7") as caught:
        dense.save(small.resnet(), tmp_path / "m.pt", like=Source(str(tmp_path / "other.pt")))
    assert "--like none" in caught.value.hint and not (tmp_path / "m.pt").exists()
    state = small.resnet().state_dict()
    del state["conv1.weight"]
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(InputError, match="conv1.weight is not there in it"):
        dense.save(small.resnet(), tmp_path / "m.pt", like=Source(str(tmp_path / "other.pt")))
