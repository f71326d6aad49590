"""Names in a state dict: each wrapper's word in each place and envelope, tensors that are no layer's, two
networks."""
import pytest
import torch
from helpers.checkpoint_files import refused_with, saved
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pwoa_cli.checkpoints.keys import BESIDE, COUNTERS, WORDS
from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.checkpoints.state_dict import read_state_dict
from pwoa_cli.errors import InputError
from pwoa_cli.networks.families.resnet import CifarResNet

pytestmark = pytest.mark.usefixtures("folder")
ENVELOPES = {"bare": lambda s: s, "state_dict": lambda s: {"state_dict": s, "epoch": 3},
             "list": lambda s: {"state_dict": [s]}, "nested": lambda s: {"model": {"state_dict": s}}}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return CifarResNet(blocks=(1, 1, 1), widths=(2, 4, 6)).eval().state_dict()


def first(word, key):
    return f"{word}.{key}"


def inside(word, key):
    """Around each block, as compilation, checkpointing and FSDP by block do."""
    return key.replace(".0.conv", f".0.{word}.conv").replace(".0.bn", f".0.{word}.bn").replace(
        ".0.downsample", f".0.{word}.downsample").replace(".0.shortcut", f".0.{word}.shortcut")


def everywhere(word, key):
    module, _, name = key.rpartition(".")
    return f"{word}." + module.replace(".", f".{word}.") + f".{word}.{name}"


# layer.module.weight may be a layer's own name
PLACES = [(word, place) for word in (*WORDS, "module", "module._orig_mod", "_orig_mod.module")
          for place in (first, inside, everywhere)
          if "module" not in word.split(".") or place is first]


@pytest.mark.parametrize("envelope", ENVELOPES)
@pytest.mark.parametrize(("word", "place"), PLACES)
def test_words_of_wrappers_go_wherever_they_stand(net, word, place, envelope):
    content = ENVELOPES[envelope]({place(word, key): tensor for key, tensor in net.items()})
    state, _, notes = read_state_dict(saved(content))
    assert state.keys() == net.keys() and all(torch.equal(state[k], net[k]) for k in net)
    assert all(part in " ".join(notes) for part in word.split("."))


def test_data_parallelism_around_a_part_goes(net):
    content = {key.replace("layer1.", "layer1.module."): tensor for key, tensor in net.items()}
    state, _, notes = read_state_dict(saved(content))
    assert state.keys() == net.keys() and notes == ("unwrapped: module in keys",)


def test_words_stay_where_two_keys_would_become_one():
    content = {"a.weight": torch.ones(2, 2), "a._module.weight": torch.zeros(2, 2), "b.bias": torch.ones(2)}
    assert read_state_dict(saved(content))[0].keys() == content.keys()


# --- tensors that are no layer's ---------------------------------------------------------------

BOOKKEEPING = {
    "thop": lambda s: s | {f"{k.rpartition('.')[0]}.{name}": torch.zeros(1, dtype=torch.float64)
                           for k in s for name in ("total_ops", "total_params")},
    "AveragedModel": lambda s: {"n_averaged": torch.tensor(3)} | {f"module.{k}": t for k, t in s.items()},
    "loss": lambda s: {f"model.{k}": t for k, t in s.items()} | {"criterion.weight": torch.ones(10)},
    "centres": lambda s: {f"net.{k}": t for k, t in s.items()} | {"center_loss.centers": torch.ones(10, 6)},
    "metrics": lambda s: {f"model.{k}": t for k, t in s.items()} | {
        "train_acc.tp": torch.tensor(3), "val_metrics.confmat": torch.ones(10, 10), "epoch": torch.tensor(2)},
    "attack": lambda s: {f"model.{k}": t for k, t in s.items()} | {"attack.delta": torch.ones(1, 3, 32, 32)},
    "attacker's double": lambda s: {f"model.{k}": t for k, t in s.items()} | {
        f"attacker.model.{k}": t for k, t in s.items()},
    "ema-pytorch, alone": lambda s: {f"ema_model.{k}": t for k, t in s.items()} | {
        "initted": torch.tensor(True), "step": torch.tensor(4), "global_step": torch.tensor(4)}}


@pytest.mark.parametrize("envelope", ENVELOPES)
@pytest.mark.parametrize("kind", BOOKKEEPING)
def test_tensors_that_are_no_layers_are_left_out_and_named(net, kind, envelope):
    path = saved(ENVELOPES[envelope](BOOKKEEPING[kind](net)))
    state, _, notes = read_state_dict(path)
    assert state.keys() == net.keys() and "no layer's" in " ".join(notes)
    assert load_model(path).arch == "cifar-resnet"


def test_counters_of_one_number_alone_and_networks_of_such_names_stay():
    shift = {"total_ops": torch.ones(3), "w.weight": torch.ones(2, 2)}  # no counter: three numbers
    assert read_state_dict(saved(shift))[0].keys() == shift.keys()
    only = {"loss.fc.weight": torch.ones(2, 2), "loss.fc.bias": torch.ones(2)}  # nothing else is there
    assert read_state_dict(saved(only))[0].keys() == {"loss.fc.weight", "loss.fc.bias"}
    assert "criterion" not in COUNTERS and not any(map(BESIDE.fullmatch, (
        "conv1", "fc", "head", "AuxLogits", "metric_fc", "attn", "features", "adapter", "lossless")))


# --- two networks in one file ---------------------------------------------------------------

@pytest.mark.parametrize(("plain", "average"), [
    ("net", "ema_net"), ("model", "model_ema"), ("online_model", "ema_model"), ("net", "target_net"),
    ("network", "swa_network")])
def test_a_network_beside_its_average_is_taken_and_the_other_is_offered(net, plain, average):
    averaged = {f"{average}.{k}": t + 1 for k, t in net.items()}
    path = saved({"state_dict": {f"{plain}.{k}": t for k, t in net.items()} | averaged | {
        "step": torch.tensor(3)}})
    state, _, notes = read_state_dict(path)
    assert all(torch.equal(state[k], net[k]) for k in net) and f"--entry {average} takes it" in notes[0]
    state, _, notes = read_state_dict(path, entry=average)
    assert state.keys() == net.keys() and all(torch.equal(state[k], net[k] + 1) for k in net)


def copies(net, **more):
    """Two copies of a network side by side, the second one of other weights."""
    return {f"model.{k}": t for k, t in net.items()} | {
        f"ema_model.{k}": t + 1 for k, t in net.items()} | more


MEAN = torch.tensor([0.5, 0.25, 0.125]).view(1, 3, 1, 1)
STD = torch.tensor([0.25, 0.5, 0.75]).view(1, 3, 1, 1)


@pytest.mark.parametrize("entry", [None, "model", "ema_model"])
@pytest.mark.parametrize("names", [("normalize.mean", "normalize.std"), ("mean", "std"), ("0.mean", "0.std")])
@pytest.mark.parametrize("outer", ["", "module.", "net.", "module._orig_mod.", "wrapper."])
def test_a_normalisation_beside_two_copies_of_a_network_is_that_of_both(net, outer, names, entry):
    content = copies(net, **dict(zip(names, (MEAN, STD), strict=True)))
    beside = "" if outer == "wrapper." else outer  # or even beside what is around both
    named = {(beside if t is MEAN or t is STD else outer) + k: t for k, t in content.items()}
    loaded = load_model(Source(saved(named), entry=entry))
    assert (loaded.mean, loaded.std, loaded.normalisation.said_by) == (
        (0.5, 0.25, 0.125), (0.25, 0.5, 0.75), "file")
    added = float(entry == "ema_model")
    assert torch.equal(loaded.model.net.state_dict()["conv1.weight"], net["conv1.weight"] + added)


@pytest.mark.parametrize(("entry", "mean"), [(None, 0.5), ("model", 0.5), ("ema_model", 0.25)])
@pytest.mark.parametrize(("net_at", "norm_at"), [("", "normalize."), ("1.", "0.")])
def test_each_copy_keeps_the_normalisation_in_it_whatever_lies_beside(net, net_at, norm_at, entry, mean):
    sides = {f"{side}.{key}": tensor for side, value in (("model", 0.5), ("ema_model", 0.25))
             for key, tensor in ({net_at + k: t for k, t in net.items()} | {
                 f"{norm_at}mean": torch.full((3,), value), f"{norm_at}std": torch.full((3,), 0.75)}).items()}
    loaded = load_model(Source(saved(sides | {"mean": torch.zeros(3), "std": torch.ones(3)}), entry=entry))
    assert (loaded.mean, loaded.std) == ((mean,) * 3, (0.75,) * 3)


def averaged(net):
    """What AveragedModel stores of a network whose weights are one more than these."""
    made = CifarResNet(blocks=(1, 1, 1), widths=(2, 4, 6))
    made.load_state_dict({k: t + 1 for k, t in net.items()})
    return AveragedModel(made).state_dict()


@pytest.mark.parametrize(("plain", "average", "outer"), [
    ("model", "swa_model", ""), ("model", "second", ""), ("net", "swa", "module."), ("a", "b", "model.")])
def test_averaged_model_side_by_side_with_its_network(net, plain, average, outer):
    content = {f"{outer}{plain}.{k}": t for k, t in net.items()} | {
        f"{outer}{average}.{k}": t for k, t in averaged(net).items()}
    state, _, notes = read_state_dict(saved({"state_dict": content}))
    assert state.keys() == net.keys() and all(torch.equal(state[k], net[k]) for k in net)
    assert f"--entry {average} takes it" in notes[0]
    state = read_state_dict("m.pt", entry=average)[0]
    assert state.keys() == net.keys() and all(torch.equal(state[k], net[k] + 1) for k in net)


@pytest.mark.parametrize("outer", ["", "module.", "model.", "module._orig_mod."])
@pytest.mark.parametrize(("average", "made"), [
    ("ema", "copy"), ("swa_model", "averaged"), ("shadow", "copy"), ("second", "averaged")])
@pytest.mark.parametrize("normalised", [True, False])
def test_an_average_among_the_layers_of_its_network(net, average, made, outer, normalised):
    other = averaged(net) if made == "averaged" else {k: t + 1 for k, t in net.items()}
    content = dict(net) | {f"{average}.{k}": t for k, t in other.items()}
    if normalised:
        content |= {"mean": MEAN, "std": STD}
    path = saved({"state_dict": {outer + k: t for k, t in content.items()}})
    for entry, added in ((None, 0.0), (average, 1.0)):
        loaded = load_model(Source(path, entry=entry))
        assert torch.equal(loaded.model.net.state_dict()["conv1.weight"], net["conv1.weight"] + added)
        assert (loaded.mean == (0.5, 0.25, 0.125)) is normalised
    assert f"--entry {average} takes it" in " ".join(read_state_dict(path)[2])


def test_layers_that_are_named_as_an_average_and_are_none_stay(net):
    content = dict(net) | {f"ema.{k}": t for k, t in list(net.items())[:-1]}
    assert read_state_dict(saved(content))[0].keys() == content.keys()


@pytest.mark.parametrize(("plain", "average"), [("model", "swa"), ("base", "swa"), ("base", "second")])
def test_averaged_model_in_a_mapping_beside_its_network(net, plain, average):
    state, _, notes = read_state_dict(saved({average: averaged(net), plain: net, "epoch": 3}))
    assert all(torch.equal(state[k], net[k]) for k in net)
    assert notes[0] == f"weights: {plain!r} of the file; it also holds {average!r}, which is not used"
    state = read_state_dict("m.pt", entry=average)[0]
    assert state.keys() == net.keys() and all(torch.equal(state[k], net[k] + 1) for k in net)


@pytest.mark.parametrize(("one", "other"), [
    ("surrogate", "target"), ("source_net", "target_net"), ("robust", "swapped"),
    ("clean_net", "schema_net")])
def test_two_networks_of_one_shape_are_no_average_by_a_syllable(net, one, other):
    """The first was taken, "beside it lies target.*, an average of the same network"."""
    state = {f"{side}.{k}": t + add for side, add in ((one, 0), (other, 1)) for k, t in net.items()}
    with pytest.raises(InputError):
        load_model(Source(saved(state)))
    assert torch.equal(read_state_dict("m.pt", entry=other)[0]["conv1.weight"], net["conv1.weight"] + 1)


@pytest.mark.parametrize(("plain", "average"), [("online", "target"), ("encoder", "momentum_encoder"),
                                                ("net", "netEMA"), ("model", "ema2")])
def test_names_of_averages(net, plain, average):
    state = {f"{side}.{k}": t + add for side, add in ((plain, 0), (average, 1)) for k, t in net.items()}
    assert torch.equal(read_state_dict(saved(state))[0]["conv1.weight"], net["conv1.weight"])


def test_averaged_model_of_another_network_is_no_average_of_this_one(net):
    other = AveragedModel(nn.Linear(2, 2)).state_dict()
    assert refused_with(saved({"base": net, "swa": other}))[0] == "m.pt holds 2 models: 'base', 'swa'."


def test_branches_of_one_network_are_no_two_networks():
    branch = {"0.weight": torch.ones(2, 2), "1.weight": torch.ones(2, 2)}
    content = {f"{name}.{k}": t for name in ("left", "right") for k, t in branch.items()}
    assert read_state_dict(saved(content))[0].keys() == content.keys()


# --- lists, flat parameters ---------------------------------------------------------------

def test_lists_of_networks_of_pairs_and_of_nameless_tensors(net):
    path = saved({"state_dict": [net, {k: t + 1 for k, t in net.items()}], "err": [0.1]})
    assert refused_with(path) == (f"{path} holds 2 models: '0', '1'.", "Say which: --entry 0")
    second = read_state_dict(path, entry="state_dict.1")[0]
    assert torch.equal(second["conv1.weight"], net["conv1.weight"] + 1)
    assert read_state_dict(saved([net]))[0].keys() == net.keys()
    assert read_state_dict(saved(list(net.items())))[0].keys() == net.keys()
    message, hint = refused_with(saved(list(net.values())))
    assert f"a list of {len(net)} tensors without names" in message and "state_dict()" in hint


def test_flat_parameters_are_named():
    message, hint = refused_with(saved({"layer._fsdp_wrapped_module._flat_param": torch.ones(9)}))
    assert "flat parameter of FSDP" in message and "FULL_STATE_DICT" in hint


def test_a_network_of_the_user_s_with_such_names_gets_them_as_they_are(tmp_path):
    (tmp_path / "net.py").write_text("""
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self._module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        self.loss = nn.Linear(4, 3)

    def forward(self, x):
        return self.loss(self._module(x))


fn = Net
""")
    torch.manual_seed(0)
    state = {"_module.1.weight": torch.rand(4, 12), "_module.1.bias": torch.rand(4),
             "loss.weight": torch.rand(3, 4), "loss.bias": torch.rand(3)}
    loaded = load_model(Source(saved({"state_dict": state}), arch=f"{tmp_path}/net.py:fn"))
    own = loaded.model.net.state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in state.items())
