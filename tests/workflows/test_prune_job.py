"""What is found, decided and refused before the first epoch of a run."""
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_models as small
from helpers.workflow_calls import FAST, refused, request, run_in
from torch import nn

from pwoa_cli.checkpoints.model import Source
from pwoa_cli.errors import InputError
from pwoa_cli.networks.build import build
from pwoa_cli.training import objective
from pwoa_cli.training.kinds import Kinds
from pwoa_cli.training.recipe import read_recipe
from pwoa_cli.workflows import evaluate, prune_weights
from pwoa_cli.workflows.prune_job import prepare
from pwoa_cli.workflows.prune_request import NO_HIDDEN


def test_a_sparsity_that_whole_groups_cannot_reach():
    message = refused("resnet.pt", structure="filter", sparsity=0.95)
    assert message == ("resnet.pt: 95% cannot be reached with whole filters, as one must stay in each of "
                       "9 layers: at most 85.53%.")
    with pytest.raises(InputError) as caught:
        prepare(request(structure="column", sparsity=0.99), say=lambda text: None)
    assert "whole columns" in caught.value.message and caught.value.hint.startswith("--sparsity 0.9")


@pytest.mark.parametrize(("zeros", "more"), [
    (0.0, "0.5"), (0.5, "0.8"), (0.9, "0.95"), (0.9949, "0.997"), (1 - 1e-9, "0.9999999995")])
def test_the_sparsity_that_is_named_to_ask_for_more_is_more(zeros, more):
    assert prune_weights.above(zeros) == more and zeros < float(more) < 1


def test_an_attack_of_another_norm_is_refused_before_any_work():
    assert refused(attacks="fgsm,cw-l2", norm="linf") == "cw-l2 attacks in l2, the norm asked for is linf."
    with pytest.raises(InputError, match="cw-l2 attacks in l2"):
        asked = evaluate.Request(Source("lenet.pt"), attacks="cw-l2", data="grey.npz", eps="0.1", n=20)
        evaluate.prepare(asked, say=lambda text: None)


def test_more_samples_than_there_are():
    assert refused(n=65) == "65 samples were asked for, but the data has 64: expected 1..64."


def test_nothing_to_prune(tmp_path):
    Path("one.py").write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), "
                              "nn.Linear(64, 4))\n")
    model = small.learn(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    small.save(model, "one.pt")
    message = refused("one.pt", arch="one.py:net", structure="filter")
    assert "no weights that could be pruned (filter)" in message


def test_a_network_without_hidden_layers_is_distilled_from_its_logits(tmp_path):
    """Unless the command line asks for hidden layers: then it says that there are none."""
    Path("one.py").write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), "
                              "nn.Linear(64, 4))\n")
    small.save(small.learn(nn.Sequential(nn.Flatten(), nn.Linear(64, 4))), "one.pt")
    report, said = run_in(tmp_path / "run", "one.pt", arch="one.py:net")
    assert NO_HIDDEN in said and report["recipe"]["hidden_weight"] == 0
    assert report["student"]["clean"]["accuracy"] > 0.9
    Path("mine.toml").write_text("alpha = 1\nlambda_x = 1e-3\nlambda_y = 1e-3\nhsic_every = 4\n")
    report, _ = run_in(tmp_path / "mine", "one.pt", arch="one.py:net", recipe="mine.toml")
    assert [report["recipe"][name] for name in ("lambda_x", "lambda_y", "hsic_every")] == [0, 0, 1]
    for asked in ({"hidden": "inner"}, {"hidden": "auto", "hidden_weight": "2"}, {"lambda_x": "1e-3"}):
        assert "no hidden layer" in refused("one.pt", arch="one.py:net", overrides=FAST | asked)
    message = refused("one.pt", arch="one.py:net", overrides=FAST | {"alpha": "0"})
    assert "nothing to learn from the teacher" in message


def test_a_recipe_s_bottleneck_yields_to_a_single_training_image(tmp_path):
    """Asked for on the command line it is refused, as kernels compare images."""
    small.write_npz("whole.npz")
    with np.load("whole.npz") as file:
        np.savez("one.npz", **{k: file[k][:1] if "train" in k else file[k] for k in file.files})
    Path("mine.toml").write_text("alpha = 1\nepochs = 2\nbatch_size = 8\nlambda_x = 1e-3\nhsic_every = 4\n")
    report, said = run_in(tmp_path / "mine", data="one.npz", recipe="mine.toml", overrides={})
    assert "note: there is one training image: HSIC, which compares images, is left out" in said
    assert [report["recipe"][name] for name in ("lambda_x", "hsic_every")] == [0, 1]
    message = refused(data="one.npz", recipe="mine.toml", overrides={"lambda_y": "0.1"})
    assert "there is one training image" in message


def black(path):
    """The background of the images set to 0."""
    arrays = dict(np.load(path))
    np.savez(path, **{name: np.where(a < 110, 0, a) if name.startswith("x") else a
                      for name, a in arrays.items()})


def test_the_table_of_the_data_is_read_before_fields_are_compared():
    """The default recipe mixes every batch by boxes, but not flat images: half of theirs can be mixed by
    weights."""
    black(small.write_npz("digits.npz"))
    fields = FAST | {"mixup": "0.5"}
    plan = prepare(request(data="digits.npz", overrides=fields), say=lambda text: None).plan
    assert (plan.recipe.cutmix, plan.recipe.mixup, plan.recipe.noise) == (0, 0.5, "blocks")
    assert "a batch is mixed in one way" in refused(overrides=fields)
    message = refused(data="absent.npz", overrides=FAST | {"mixup": "2"})
    assert message == "command line: mixup = 2.0, expected a number at most 1."


DROPPING = """
from torch import nn
from torch.nn import functional as F
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.fc = nn.Linear(144, 4)
    def forward(self, x):
        return self.fc(F.dropout(self.relu(self.bn(self.conv(x))).flatten(1), RATE, self.training))
def net():
    return Net()
"""


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_reactions_to_noise_are_not_asked_of_a_network_that_drops_units(tmp_path, rate):
    """Not a module, so only the answers tell; batch norm alone is no reason."""
    code = DROPPING.replace("RATE", str(rate))
    (tmp_path / "own.py").write_text(code)
    exec(code, names := {})
    model = small.save(small.learn(names["net"]()), tmp_path / "own.pt")
    more = {"arch": f"{tmp_path}/own.py:net", "data": "grey.npz",
            "overrides": FAST | {"neighbour_weight": "1"}}
    if rate:
        assert refused(model, **more) == (
            "neighbour_weight = 1 compares answers to an image and to its noisy copy, but the model answers "
            "at random in training (dropout): nothing would be the noise's doing alone.")
        more["overrides"] = FAST
    job = prepare(request(model, **more), say=lambda text: None)
    state = torch.random.get_rng_state()
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator())
    assert objective.random_in_training(job.subject.model, x) == (rate > 0)
    assert torch.equal(state, torch.random.get_rng_state()) and not job.subject.model.training
    assert torch.equal(job.subject.model.state_dict()["net.bn.running_mean"],
                       torch.load(model)["bn.running_mean"])


def test_nothing_left_to_learn_from_another_teacher(tmp_path):
    """A recipe of hidden layers alone and a teacher that has others."""
    narrow = small.save(small.learn(small.LeNet(size=8, widths=(2, 8), hidden=16, num_classes=4)),
                        tmp_path / "narrow.pt")
    (tmp_path / "hidden.toml").write_text("alpha = 0\nhidden_weight = 1\n")
    message = refused(teacher=narrow, recipe=str(tmp_path / "hidden.toml"))
    assert "nothing to learn from the teacher" in message


@pytest.mark.parametrize(("able", "precision", "warned"),
                         [(False, "bf16", True), (True, "bf16", False), (False, "float32", False)])
def test_bf16_without_instructions_for_it_is_said(monkeypatch, able, precision, warned):
    found = {"architecture": "x86_64", "avx512_bf16": able, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    said = []
    prepare(request(overrides=FAST | {"precision": precision}, device="cpu"), say=said.append)
    assert any("bf16" in line and "slower than float32" in line for line in said) == warned


@pytest.mark.parametrize(("structure", "allocation"),
                         [("unstructured", "global"), ("filter", "lamp"), ("column", "lamp")])
def test_auto_allocation_spares_small_layers_where_groups_differ_in_size(structure, allocation):
    job = prepare(request(overrides=FAST | {"allocation": "auto"}, structure=structure),
                  say=lambda text: None)
    assert job.plan.recipe.allocation == allocation
    resnet = Kinds("batch-norm", "photographs")
    assert read_recipe("default", data="cifar10", kinds=resnet).allocation == "auto"


def test_auto_allocation_leaves_global_where_it_would_starve_a_layer(tmp_path):
    """The same answers from a first layer a thousand times smaller and a second one as much larger."""
    model = small.learn(small.lenet())
    with torch.no_grad():
        for parameter, factor in ((model.conv1.weight, 1e-3), (model.conv1.bias, 1e-3),
                                  (model.conv2.weight, 1e3)):
            parameter *= factor
    path = small.save(model, tmp_path / "scaled.pt")
    job = prepare(request(path, overrides=FAST | {"allocation": "auto"}, sparsity=0.9), say=lambda text: None)
    assert job.plan.recipe.allocation == "lamp"


MLP = "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), " \
    "nn.ReLU(), nn.Linear(16, 4))\n"


@pytest.mark.parametrize(("model", "arch", "settled", "words"), [
    ("lenet.pt", None, ("adam", 1.5e-3, "lamp", 128, "gaussian"), "no norms on photographs: adam at 0.0015"),
    ("mlp.pt", "mlp.py:net", ("adam", 1.5e-3, "lamp", 128, "gaussian"), "no norms on photographs"),
    ("resnet.pt", None, ("sgd", 0.05, "global", 128, "gaussian"), "batch norm on photographs: sgd at 0.05")])
def test_settings_come_from_what_the_network_is_and_are_said(model, arch, settled, words):
    if arch:
        Path("mlp.py").write_text(MLP)
        small.save(small.learn(build("mlp.py:net", {})), "mlp.pt")
    said = []
    asked = request(model, overrides={"epochs": "1"}, sparsity=0.5, **({"arch": arch} if arch else {}))
    recipe = prepare(asked, say=said.append).plan.recipe
    assert (recipe.optimizer, recipe.lr, recipe.allocation, recipe.batch_size, recipe.noise) == settled
    assert any(words in line for line in said)


@pytest.mark.parametrize(("found", "precision"), [
    ({"architecture": "x86_64", "avx512_bf16": True}, "bf16"),
    ({"architecture": "x86_64", "avx512_bf16": False}, "float32"),
    ({"architecture": "unheard of"}, "float32")])
def test_auto_precision_is_bf16_where_the_device_is_known_to_multiply_it(monkeypatch, found, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    said = []
    job = prepare(request(overrides=FAST | {"precision": "auto"}, device="cpu"), say=said.append)
    assert job.plan.recipe.precision == precision
    assert not any("warning" in line for line in said)


def test_options_that_a_structure_cannot_have():
    assert refused(structure="filter", overrides=FAST | {"regrow": "0.1"}) == (
        "regrow cannot bring whole filters back: a silent filter has no gradient.")


@pytest.mark.parametrize(("kind", "regrow"), [("unstructured", 0.3), ("column", 0.3), ("filter", 0)])
def test_regrowing_of_the_recipe_yields_to_filters(kind, regrow, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("hidden_weight = 1\nnoise = 'blocks'\nregrow = 0.3\n")
    job = prepare(request(structure=kind, recipe=str(recipe), overrides=FAST), say=print)
    assert job.plan.recipe.regrow == regrow
    assert refused(structure="column", overrides=FAST | {"start": "obs"}) == (
        "start = 'obs' reconstructs around single weights; the structure is column.")


LONG = """
from collections import OrderedDict
from torch import nn
def net(names):
    relus = {name: nn.ReLU() for name in names}
    layers = dict(flat=nn.Flatten(), first=nn.Linear(64, 16), **relus, last=nn.Linear(16, 4))
    return nn.Sequential(OrderedDict(layers))
def nine():
    return net("abcdefghi")
def ten():
    return net("abcdefghij")
"""


def test_long_lists_of_layers_are_shortened(tmp_path):
    (tmp_path / "long.py").write_text(LONG)
    said = []
    for number in ("nine", "ten"):
        file = small.save(small.learn(build(f"{tmp_path}/long.py:{number}", {})), tmp_path / f"{number}.pt")
        prepare(request(file, arch=f"{tmp_path}/long.py:{number}"), say=said.append)
    nine, ten = (line.partition(" hidden layers: ") for line in said if " hidden layers: " in line)
    assert nine[0].endswith(" 9") and nine[2] == "a, b, c, d, e, f, g, h, i"
    assert ten[0].endswith(" 10") and ten[2] == "a, b, c, d, ..., j"
