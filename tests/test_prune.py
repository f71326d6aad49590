"""Pruning from a checkpoint to a report on small networks, and every input that must be refused."""
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import small_models as small
import torch
from torch import nn

import pwoa_cli
from pwoa_cli import architecture, assess, checkpoint, config, data, estimate, models, objective, prune, sparse_file, training
from pwoa_cli.checkpoint import Source
from pwoa_cli.errors import InputError, PwoaError

FAST = {"epochs": "2", "batch_size": "32"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Trained networks with and without batch norm, and data for them."""
    folder = tmp_path_factory.mktemp("world")
    small.save(small.learn(small.lenet()), folder / "lenet.pt")
    small.save(small.learn(small.resnet(), channels=3), folder / "resnet.pt")
    small.write_npz(folder / "grey.npz")
    small.write_npz(folder / "colour.npz", channels=3)
    return folder


@pytest.fixture(autouse=True)
def here(world, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(world)
    yield world
    torch.set_num_threads(threads)


def request(model="lenet.pt", *, sparsity=0.7, **options):
    source = Source(model, **{k: options.pop(k) for k in ("arch", "num_classes", "mean", "std", "entry") if k in options})
    fields = {"data": "colour.npz" if model == "resnet.pt" else "grey.npz", "eps": "0.1", "n": 20, "attacks": "fgsm"}
    fields |= {"overrides": FAST}
    if "teacher" in options:
        options["teacher"] = Source(str(options["teacher"]))
    return prune.Request(source, sparsity, **fields | options)


def run_in(folder, *args, **options):
    """(report, what was said) of a run; its files are in the folder."""
    said = []
    folder.mkdir()
    job = prune.prepare(request(*args, **options), say=said.append)
    made = prune.execute(job, folder, say=said.append, progress=lambda *_: None, created=datetime(2026, 1, 2))
    return made, "\n".join(said)


def refused(*args, **options):
    """The error that a request gives before any work."""
    with pytest.raises(InputError) as caught:
        prune.prepare(request(*args, **options), say=lambda text: None)
    assert caught.value.hint and "\n" not in caught.value.message
    return caught.value.message


def test_end_to_end(tmp_path):
    made, said = run_in(tmp_path / "run", sparsity=0.7)
    state = pwoa_cli.load_state_dict(tmp_path / "run/model.safetensors")
    weights = {name: t for name, t in state.items() if t.ndim > 1}
    assert sum(int((t == 0).sum()) for t in weights.values()) == round(0.7 * 900) == 630  # exactly
    assert not any(t[t == 0].signbit().any() for t in weights.values())  # +0.0
    assert all(t.count_nonzero() == t.numel() for name, t in state.items() if t.ndim == 1)  # biases are not pruned
    layers = {layer.pop("name"): layer for layer in made["sparsity"]["layers"]}
    assert layers == {name: {"shape": list(t.shape), "nonzero": int(t.count_nonzero()), "total": t.numel()}
                      for name, t in weights.items()}
    assert made["sparsity"]["nonzero"] == 270 and made["sparsity"]["total"] == 900 and made["sparsity"]["achieved"] == 0.7
    assert made["size"]["dense_bytes"] == sparse_file.dense_bytes(state) and made["macs"]["nonzero"] < made["macs"]["dense"]
    assert made["student"]["clean"]["accuracy"] > 0.6  # far above chance: it learned
    assert "prune 900 weights in 4 layers to 70% zeros (unstructured), recipe default: 16 steps, 2 epochs" in said


def test_macs_by_hand(tmp_path):
    made, _ = run_in(tmp_path / "run")
    positions = {"conv1.weight": 64, "conv2.weight": 16, "linear1.weight": 1, "linear2.weight": 1}
    for kind, field in (("dense", "total"), ("nonzero", "nonzero")):
        assert made["macs"][kind] == sum(layer[field] * positions[layer["name"]] for layer in made["sparsity"]["layers"])


@pytest.mark.parametrize("model", ["lenet.pt", "resnet.pt"])
def test_the_file_gives_the_measured_model_again_bit_for_bit(tmp_path, monkeypatch, model):
    students = []
    fit = prune.fit
    monkeypatch.setattr(prune, "fit", lambda *args, **options: students.append(fit(*args, **options)) or students[0])
    run_in(tmp_path / "run", model)
    again = pwoa_cli.load(tmp_path / "run/model.safetensors")
    x = data.load("colour.npz" if model == "resnet.pt" else "grey.npz").test.batch(torch.arange(64))[0]
    with torch.no_grad():
        assert torch.equal(again(x), students[0](x)) and not again.training


def test_a_file_that_differs_when_it_is_read_again_is_no_success(tmp_path, monkeypatch):
    load = pwoa_cli.load

    def changed(*args, **options):
        model = load(*args, **options)
        with torch.no_grad():
            model.net.linear2.bias[0] += 1e-3
        return model

    monkeypatch.setattr(pwoa_cli, "load", changed)
    with pytest.raises(PwoaError, match="does not give the pruned model's logits"):
        run_in(tmp_path / "run")
    assert not (tmp_path / "run/report.json").exists()


def test_the_seed_decides_the_bytes(tmp_path):
    files = [tmp_path / name / "model.safetensors" for name in "abc"]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        run_in(file.parent, seed=seed)
    a, b, c = (file.read_bytes() for file in files)
    assert a == b != c


def test_the_model_and_its_file_stay_as_they_were(tmp_path):
    before = Path("lenet.pt").read_bytes()
    job = prune.prepare(request(), say=lambda text: None)
    weights = {name: t.clone() for name, t in job.subject.model.state_dict().items()}
    prune.fit(job, note=lambda *_: None)
    assert all(torch.equal(t, weights[name]) for name, t in job.subject.model.state_dict().items())
    assert Path("lenet.pt").read_bytes() == before


@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_filters_are_silent_with_their_batch_norms(tmp_path, sparsity):
    made, _ = run_in(tmp_path / "run", "resnet.pt", sparsity=sparsity, structure="filter")
    net = pwoa_cli.load(tmp_path / "run/model.safetensors").net
    outputs, modules = {}, dict(net.named_modules())
    for name, m in modules.items():
        m.register_forward_hook(lambda _m, _a, out, name=name: outputs.update({name: out}))
    net(torch.rand(4, 3, 8, 8))
    silent = 0
    for conv in [name for name, m in modules.items() if isinstance(m, nn.Conv2d)]:
        norm = conv.replace("conv", "bn").replace("shortcut.0", "shortcut.1")
        zero = modules[conv].weight.flatten(1).count_nonzero(1) == 0
        assert not outputs[norm][:, zero].any() and outputs[norm][:, ~zero].any()
        silent += int(zero.sum())
    assert silent and abs(made["sparsity"]["achieved"] - sparsity) < 0.05
    assert "linear.weight" not in [layer["name"] for layer in made["sparsity"]["layers"]]
    for layer in made["sparsity"]["layers"]:
        assert layer["nonzero"] % (layer["total"] // layer["shape"][0]) == 0  # whole filters
    assert any("keeps all its rows" in note for note in made["notes"])


def test_a_sparsity_that_whole_groups_cannot_reach():
    message = refused("resnet.pt", structure="filter", sparsity=0.95)
    assert message == "resnet.pt: 95% cannot be reached with whole filters, as one must stay in each of 9 layers: at most 85.53%."
    with pytest.raises(InputError) as caught:
        prune.prepare(request(structure="column", sparsity=0.99), say=lambda text: None)
    assert "whole columns" in caught.value.message and caught.value.hint.startswith("--sparsity 0.9")


def test_columns_fall_as_a_whole(tmp_path):
    made, _ = run_in(tmp_path / "run", structure="column", sparsity=0.5)
    state = pwoa_cli.load_state_dict(tmp_path / "run/model.safetensors")
    for name, t in state.items():
        if t.ndim > 1:
            left = t.flatten(1).count_nonzero(0)
            assert ((left == 0) | (left == t.shape[0])).all(), name
    assert abs(made["sparsity"]["achieved"] - 0.5) < 0.02


def test_the_paper_recipe_end_to_end(tmp_path):
    fields = {"epochs": "6", "batch_size": "64", "sparsify": "0.7"}
    made, _ = run_in(tmp_path / "run", recipe="paper", overrides=fields, sparsity=0.5)
    assert made["recipe"]["method"] == "admm" and made["sparsity"]["nonzero"] == 450
    assert {layer["nonzero"] / layer["total"] for layer in made["sparsity"]["layers"]} == {0.5}  # the same in every layer
    assert {"kl", "admm", "hsic_x", "hsic_y"} < json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0]).keys()


def test_pruning_a_pruned_file_further_and_not_less(tmp_path):
    run_in(tmp_path / "one", sparsity=0.5)
    file = str(tmp_path / "one/model.safetensors")
    made, _ = run_in(tmp_path / "two", file, sparsity=0.8)
    assert made["sparsity"]["nonzero"] == 180
    assert refused(file, sparsity=0.4).endswith("is pruned already: 50% of its weights are zero, 40% were asked for.")


# --- another teacher ---------------------------------------------------------------------------------------------------

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, small.CLASSES))

    def forward(self, x):
        return self.body(x)


WIDE = """
from torch import nn
def net(classes=4):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, classes))
        def forward(self, x):
            return self.body(x)
    return Wide()
"""


def test_another_teacher(tmp_path):
    teacher = small.save(small.learn(small.lenet(), seed=1), tmp_path / "teacher.pt")
    made, said = run_in(tmp_path / "run", teacher=teacher)
    assert made["model"]["teacher"] == teacher
    assert made["model"]["teacher_sha256"] == checkpoint.file_sha256(teacher) != made["model"]["sha256"]
    assert "it is right on 100.0% of the same training images" in said
    own, _ = run_in(tmp_path / "own")
    assert own["model"]["teacher"] == "lenet.pt"
    assert (tmp_path / "own/model.safetensors").read_bytes() != (tmp_path / "run/model.safetensors").read_bytes()


def test_a_teacher_must_fit(tmp_path):
    teacher = small.save(small.lenet(num_classes=5), tmp_path / "five.pt")
    assert refused(teacher=teacher) == f"--teacher {teacher} has 5 classes, lenet.pt has 4."
    assert refused(teacher="resnet.pt").startswith("--teacher resnet.pt cannot take images (1, 8, 8) of grey")
    assert refused(teacher="absent.pt").startswith("absent.pt: there is no such file")
    narrow = small.save(small.learn(small.LeNet(size=8, widths=(2, 8), hidden=16, num_classes=4)), tmp_path / "narrow.pt")
    message = refused(teacher=narrow, overrides=FAST | {"hidden_weight": "1"})
    assert message == "Hidden layers of the model and of --teacher differ, so they cannot be matched."
    assert refused(teacher=narrow, overrides=FAST | {"explain_weight": "1"}) == message


def test_a_teacher_with_other_hidden_layers_teaches_its_logits_and_that_is_said(tmp_path):
    narrow = small.save(small.learn(small.LeNet(size=8, widths=(2, 8), hidden=16, num_classes=4)), tmp_path / "narrow.pt")
    made, said = run_in(tmp_path / "run", teacher=narrow)
    assert made["recipe"]["hidden_weight"] == 0 and prune.LOGITS_ALONE in made["notes"] and prune.LOGITS_ALONE in said


def test_a_teacher_without_normalisation_in_its_file_gets_the_models(tmp_path):
    """`--mean` and `--std` describe the images, and the teacher is often the model itself, before it was pruned."""
    shifted = small.lenet()
    shifted.load_state_dict(torch.load("lenet.pt", weights_only=True))
    with torch.no_grad():  # conv1((x - 0.4) / 0.1) in place of conv1(x), but for the border
        shifted.conv1.weight *= 0.1
        shifted.conv1.bias += 4 * shifted.conv1.weight.sum((1, 2, 3))
    file = small.save(shifted, tmp_path / "shifted.pt")
    made, said = run_in(tmp_path / "run", file, mean=(0.4,), std=(0.1,), teacher=file)
    assert "right more often with the normalisation" in said and made["teacher"]["clean"]["accuracy"] > 0.9


def test_a_network_from_a_file_of_code(tmp_path):
    Path("wide.py").write_text(WIDE)
    small.save(small.learn(Wide()), "wide.pt")
    made, _ = run_in(tmp_path / "run", "wide.pt", arch="wide.py:net", overrides=FAST | {"hidden": "body.2"})
    assert made["model"]["arch"] == "wide.py:net" and made["sparsity"]["total"] == 64 * 40 + 40 * 4
    pruned = str(tmp_path / "run/model.safetensors")
    again, _ = run_in(tmp_path / "again", pruned, arch="wide.py:net", sparsity=0.9, teacher="wide.pt")  # whose keys say nothing
    assert again["teacher"]["clean"]["accuracy"] == 1 and again["model"]["teacher"] == "wide.pt"
    assert "code is not run" in refused(pruned)


def test_dead_weights_are_left_out_and_said(tmp_path):
    Path("dead.py").write_text(WIDE.replace("super().__init__()", "super().__init__(); self.never = nn.Linear(7, 3)"))
    model = small.learn(Wide())
    torch.save({"never.weight": torch.ones(3, 7), "never.bias": torch.ones(3), **model.state_dict()}, "dead.pt")
    made, said = run_in(tmp_path / "run", "dead.pt", arch="dead.py:net", data="grey.npz", sparsity=0.5)
    total = 64 * 40 + 40 * 4
    assert made["sparsity"]["total"] == total and made["sparsity"]["nonzero"] == total // 2
    assert "21 weights never reach the logits; they are not pruned and do not count." in made["notes"]
    assert pwoa_cli.load_state_dict(tmp_path / "run/model.safetensors")["never.weight"].eq(1).all()


# --- what is refused ---------------------------------------------------------------------------------------------------

def test_files_that_are_no_model(tmp_path):
    names = "text.pt", "empty.pt", "cut.pt", "cut.safetensors", "nan.pt", "inf.pt", "nothing.pt"
    files = {name: tmp_path / name for name in names}
    files["text.pt"].write_text("not a checkpoint\n" * 100)
    files["empty.pt"].write_bytes(b"")
    files["cut.pt"].write_bytes(Path("lenet.pt").read_bytes()[:2000])
    sparse_file.save(torch.load("lenet.pt", weights_only=True), tmp_path / "whole.safetensors")
    files["cut.safetensors"].write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-50])
    for name, value in (("nan.pt", np.nan), ("inf.pt", np.inf)):
        state = torch.load("lenet.pt", weights_only=True)
        state["conv2.weight"][0, 0, 0, :2] = value
        torch.save(state, files[name])
    torch.save({"epoch": 3}, files["nothing.pt"])
    messages = {name: refused(str(file)) for name, file in files.items()}
    words = ("not a checkpoint", "is empty", "truncated", "", "conv2.weight has 2 NaN or infinite values of 288",
             "conv2.weight has 2 NaN or infinite", "holds no weights; it has: epoch")
    for name, expected in zip(names, words, strict=True):
        assert name in messages[name] and expected in messages[name]


def test_wrong_architecture_names_the_tensor():
    message = refused(arch="resnet18")
    assert message.startswith("lenet.pt as resnet18: conv1.weight has shape (4, 1, 3, 3), expected (64, ")
    assert "resnt18" in refused(arch="resnt18")
    assert refused(arch="absent.py:net").startswith("--arch absent.py:net: there is no file absent.py")
    assert "--num-classes" in (message := refused(num_classes=7)) and "7" in message and "4" in message


def test_data_that_does_not_fit(tmp_path):
    small.write_npz("six.npz", classes=6)
    assert refused(data="six.npz") == "lenet.pt has 4 classes, the data set six has 6."
    assert refused(data="colour.npz").startswith("lenet.pt cannot take images (3, 8, 8) of colour: ")
    assert refused("resnet.pt", data="grey.npz").startswith("resnet.pt cannot take images (1, 8, 8) of grey: ")
    x, y = small.images(64)
    np.savez("shuffled.npz", x_train=x, y_train=np.roll(y, 1), x_test=x, y_test=y)
    assert "is right on 0.0% of 64 training images of shuffled, near chance (25.0%)" in refused(data="shuffled.npz")
    assert "No known data set has 1x8x8 inputs and 4 classes" in refused(data=None)
    assert "absent.npz: no such file or folder" in refused(data="absent.npz")
    assert "Did you mean mnist?" in refused(data="minst")


def test_a_doubtful_model_is_warned_of(tmp_path):
    x, y = small.images(200)
    half = np.where(np.arange(200) % 20 < 11, (y + 1) % 4, y)  # right on 9 of 20
    np.savez("doubtful.npz", x_train=x, y_train=half, x_test=x, y_test=y)
    said = []
    prune.prepare(request(data="doubtful.npz"), say=said.append)
    assert [line for line in said if line.startswith("warning: lenet.pt is right on 45.0% of 200 training images of doubtful.")]


def test_missing_data_says_where_it_looked_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "places", lambda: (tmp_path / "place",))
    monkeypatch.setattr(data, "_cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(data, "_fetch", lambda kind, into: (_ for _ in ()).throw(OSError("no route to host")))
    with pytest.raises(InputError) as caught:
        prune.prepare(request(data="mnist"), say=lambda text: None)
    assert str(tmp_path / "place") in caught.value.message and "the network (no route to host)" in caught.value.message
    assert "--data DIR" in caught.value.hint and "PWOA_DATA" in caught.value.hint


def test_an_attack_of_another_norm_is_refused_before_any_work():
    assert refused(attacks="fgsm,cw-l2", norm="linf") == "cw-l2 attacks in l2, the norm asked for is linf."
    with pytest.raises(InputError, match="cw-l2 attacks in l2"):
        assess.prepare(assess.Request(Source("lenet.pt"), attacks="cw-l2", data="grey.npz", eps="0.1", n=20), say=lambda text: None)


def test_more_samples_than_there_are():
    assert refused(n=65) == "65 samples were asked for, but the data has 64: expected 1..64."


def test_threat_models():
    assert "is not known: neither the file nor grey gives an eps." in refused(eps=None)
    assert "gives an eps for l2." in refused(eps=None, norm="l2")
    with pytest.raises(InputError) as caught:
        prune.prepare(request(eps=None, norm="l2"), say=lambda text: None)
    assert caught.value.hint == "Say it: --norm l2 --eps 0.5"
    assert prune.prepare(request(eps="3", norm="l2"), say=lambda text: None).subject.eps == 3
    assert "eps is 3" in refused(eps="3") and "0/0" in refused(eps="0/0")


def test_the_threat_of_a_pruned_file_is_that_of_its_run(tmp_path):
    run_in(tmp_path / "run", norm="l2", eps="1.5")
    said = []
    subject = prune.prepare(request(str(tmp_path / "run/model.safetensors"), sparsity=0.9, eps=None), say=said.append).subject
    assert (subject.norm, subject.eps) == ("l2", 1.5) and "threat model: l2, eps 1.5 (the model file" in "\n".join(said)
    subject = prune.prepare(request(str(tmp_path / "run/model.safetensors"), sparsity=0.9, eps="2"), say=said.append).subject
    assert (subject.norm, subject.eps) == ("l2", 2)  # the file's norm, the user's radius


def test_nothing_to_prune(tmp_path):
    Path("one.py").write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n")
    model = small.learn(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    small.save(model, "one.pt")
    assert "no weights that could be pruned (filter)" in refused("one.pt", arch="one.py:net", structure="filter")
    assert "no hidden layer" in refused("one.pt", arch="one.py:net")


CUSTOM = """
import torch
from torch import nn
class Capsules(nn.Module):
    # Matrices that turn 8 capsules of 8 numbers into a capsule a class, with one round of routing; its length is the logit
    def __init__(self, classes=4):
        super().__init__()
        self.matrices = nn.Parameter(torch.randn(classes, 8, 8, 6) * 0.3)
        self.gain = nn.Parameter(torch.ones(1, classes))
    def forward(self, x):
        votes = torch.einsum("bci,kcij->bkcj", x, self.matrices)
        agreement = (votes * votes.mean(2, keepdim=True)).sum(-1, keepdim=True)
        return self.gain * 4 * (agreement.softmax(2) * votes).sum(2).norm(dim=-1)
class Capsule(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.capsules = nn.Conv2d(1, 8, 3, 2, 1), Capsules()
    def forward(self, x):
        h = self.conv(x).relu().flatten(2)
        h = nn.functional.adaptive_avg_pool1d(h, 8)
        return self.capsules(h), h
class KANLayer(nn.Module):
    # Every edge has a learned function: a base weight and weights of 5 Gaussian bumps
    def __init__(self, inside, outside):
        super().__init__()
        self.base = nn.Parameter(torch.randn(outside, inside) / inside ** 0.5)
        self.bumps = nn.Parameter(torch.randn(outside, inside, 5) * 0.1)
        self.register_buffer("centres", torch.linspace(-1, 1, 5))
    def forward(self, x):
        near = torch.exp(-4 * (x.unsqueeze(-1) - self.centres) ** 2)
        return nn.functional.linear(x, self.base) + torch.einsum("big,oig->bo", near, self.bumps)
class KAN(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), KANLayer(64, 12), nn.Tanh(), KANLayer(12, 4))
    def forward(self, x):
        return super().forward(x).log_softmax(1)
"""


@pytest.mark.parametrize(("name", "weights", "said"), [
    ("Capsule", {"conv.weight": 72, "capsules.matrices": 1536}, "forward returns 0 (2, 4), 1 (2, 8, 8); 0 is taken as the logits"),
    ("KAN", {"1.base": 768, "1.bumps": 3840, "3.base": 48, "3.bumps": 240}, "forward returns log-probabilities")])
def test_layers_of_the_user_s_own_are_pruned_and_saved(tmp_path, name, weights, said):
    Path("custom.py").write_text(CUSTOM)
    arch = f"custom.py:{name}"
    net = models.build(arch, {})
    logits_of = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return logits_of(self.net(x))

    torch.manual_seed(0)
    x, y = small.images(256)
    x, y = torch.tensor(x).permute(0, 3, 1, 2).float() / 255, torch.tensor(y)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(Logits()(x), y).backward()
        optimizer.step()
    file = small.save(net.eval(), "custom.pt")
    made, spoken = run_in(tmp_path / "run", file, arch=arch, sparsity=0.6)
    assert {row["name"]: row["total"] for row in made["sparsity"]["layers"]} == weights
    assert made["sparsity"]["nonzero"] == sum(weights.values()) - round(0.6 * sum(weights.values()))
    assert said in spoken and any("are of other layers" in note for note in made["notes"])
    assert made["student"]["clean"]["accuracy"] > 0.8
    again = pwoa_cli.load(tmp_path / "run/model.safetensors", arch=arch)
    assert again(x[:3]).shape == (3, 4)
    if name == "KAN":  # it has no filters
        assert "no weights that could be pruned (filter)" in refused(file, arch=arch, structure="filter")


def test_entry_and_keep_are_the_model_s_and_not_the_teacher_s(tmp_path):
    state = torch.load("lenet.pt")
    torch.save({"best": state, "last": state}, "both.pt")
    with pytest.raises(InputError) as caught:
        prune.prepare(request(teacher="both.pt"), say=lambda text: None)
    assert "'last' and 'best'" in caught.value.message and "save the teacher in a file of its own" in caught.value.hint
    run_in(tmp_path / "run", "both.pt", entry="best", teacher="lenet.pt")
    asked = assess.Request(Source(str(tmp_path / "run")), attacks="fgsm", n=20)
    assert list(assess.prepare(asked, say=lambda text: None).models) == ["teacher", "pruned"]
    run_in(tmp_path / "own", "both.pt", entry="best")
    job = assess.prepare(assess.Request(Source(str(tmp_path / "own")), attacks="fgsm", n=20), say=lambda text: None)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(job.models["teacher"](x), pwoa_cli.load("lenet.pt")(x))


def test_the_reading_is_in_report_and_config(tmp_path):
    made, said = run_in(tmp_path / "run", "resnet.pt")
    settled = [note for note in made["notes"] if note.startswith("confirmed: as read ")]
    assert len(settled) == 1 and settled[0] in said and made["model"]["arch_options"]["shortcut"] == "conv"
    assert 'shortcut = "conv"' in (tmp_path / "run/config.toml").read_text()


def test_networks_with_the_same_keys_are_told_apart_by_accuracy(monkeypatch):
    Path("two.py").write_text("""
from torch import nn
def first(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4))
def second(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
def third(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.LeakyReLU(1e-3), nn.Linear(16, 4))""")
    file = small.save(small.learn(models.build("two.py:second", {})), "two.pt")
    names = ["two.py:first", "two.py:second"]

    def several(state, *, where):
        raise architecture.UnknownArchitecture(f"{where} fits {len(names)} networks.", hint="Say which.", candidates=tuple(names))

    monkeypatch.setattr(architecture, "identify", several)
    monkeypatch.setattr(small.torch.nn.Tanh, "forward", lambda self, x: -x)  # far from ReLU
    said = []
    job = prune.prepare(request(file), say=said.append)
    assert job.subject.loaded.arch == "two.py:second"
    assert any("fits 2 networks. Told apart by accuracy on training images: two.py:first " in line for line in said)
    names.append("two.py:third")  # as right as the second
    assert refused(file) == f"{file} fits 3 networks."


def test_models_that_answer_nonsense(tmp_path):
    file = small.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), "one.pt")
    answers = {"(x[:, :2], x[:, :3])": "returns a tuple of 0 (100, 2), 1 (100, 3) for 100 images, expected logits (100, 4)",
               "x[:, :2]": "returns (100, 2) for 100 images", "x / 0": "returns NaN or infinite logits",
               "x.reshape(3, -1)": "cannot take images (1, 8, 8) of grey"}
    for body, words in answers.items():
        Path("odd.py").write_text(f"""
from torch import nn
class Net(nn.Sequential):
    def forward(self, x):
        x = super().forward(x)
        return {body}
def net():
    return Net(nn.Flatten(), nn.Linear(64, 4))""")
        assert words in refused(file, arch="odd.py:net", num_classes=4), body


def test_a_loss_that_is_not_finite_names_the_step(tmp_path):
    with pytest.raises(PwoaError, match=r"The loss is not finite by step \d+ of 16: kl") as caught:
        run_in(tmp_path / "run", overrides=FAST | {"lr": "1e30", "optimizer": "sgd"})
    assert caught.value.exit_code == 1 and "lr" in caught.value.hint
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.toml", "metrics.jsonl"]


def test_eval_of_a_run_reads_its_source_as_the_run_did(tmp_path):
    """A tie on the probe images must not lose the --mean and --std that the run was told."""
    made, _ = run_in(tmp_path / "run", mean=(0.02,), std=(1.0,))
    asked = assess.Request(Source(str(tmp_path / "run")), attacks="fgsm", n=20)
    found = assess.execute(assess.prepare(asked, say=lambda text: None), progress=lambda *_: None, say=lambda text: None).result
    assert found["teacher"] == made["teacher"] and found["student"] == made["student"] and found["drop"] == made["drop"]


def test_negative_zeros_of_a_checkpoint_become_positive(tmp_path):
    state = torch.load("lenet.pt", weights_only=True)
    state["conv2.weight"][0] = -0.0
    torch.save(state, tmp_path / "minus.pt")
    run_in(tmp_path / "run", str(tmp_path / "minus.pt"), overrides=FAST | {"allocation": "uniform"})
    weight = sparse_file.load(tmp_path / "run/model.safetensors")["conv2.weight"]
    assert not weight[weight == 0].signbit().any()


FROZEN_AND_TIED = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.mu = nn.Parameter(nn.init.constant_(__import__("torch").empty(1), 0.13), requires_grad=False)
        self.flat, self.first, self.relu = nn.Flatten(), nn.Linear(64, 32), nn.ReLU()
        self.a, self.b, self.last = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.b.weight = self.a.weight
    def forward(self, x):
        x = self.relu(self.first(self.flat(x - self.mu)))
        return self.last(self.relu(self.b(self.relu(self.a(x)))))
def net():
    return Net()
"""


def test_frozen_parameters_stay_and_tied_weights_are_not_dead(tmp_path):
    (tmp_path / "own.py").write_text(FROZEN_AND_TIED)
    names = {}
    exec(FROZEN_AND_TIED, names)
    model = small.save(small.learn(names["net"]()), tmp_path / "own.pt")
    made, _ = run_in(tmp_path / "run", model, arch=f"{tmp_path}/own.py:net")
    assert not any("never reach" in note for note in made["notes"])
    assert torch.equal(sparse_file.load(tmp_path / "run/model.safetensors")["mu"], torch.load(model, weights_only=True)["mu"])


def test_admm_without_an_update_is_said(tmp_path):
    made, _ = run_in(tmp_path / "run", recipe="paper")
    assert any("ADMM made no z/u update" in note for note in made["notes"])


# --- options of the schedule ------------------------------------------------------------------------------------------

def test_partial_access_is_said(tmp_path):
    made, _ = run_in(tmp_path / "run", overrides=FAST | {"mix_ratio": "0.25"})
    assert made["notes"][-1] == ("Partial access: adversarial examples (PGD-10 on the student, linf, eps 0.1) took the place of "
                                 "25% of the training batches.")
    made, _ = run_in(tmp_path / "without")
    assert made["notes"][-1] == "No adversarial example was generated while pruning."


@pytest.mark.parametrize(("model", "overrides", "structure"), [
    ("resnet.pt", {"start": "obs", "allocation": "sensitivity", "ema": "0.9"}, "unstructured"),
    ("resnet.pt", {"regrow": "0.3", "bn_reestimate": "2"}, "column"),
    ("resnet.pt", {"allocation": "sensitivity", "ema": "0.5", "bn_reestimate": "1", "bn_inputs": "clean"}, "filter"),
    ("lenet.pt", {"start": "obs", "mix_ratio": "1"}, "unstructured")])
def test_options_together_end_in_a_sound_file(tmp_path, model, overrides, structure):
    made, _ = run_in(tmp_path / "run", model, sparsity=0.6, structure=structure, overrides=FAST | overrides)
    assert made["student"]["clean"]["accuracy"] > 0.4 and abs(made["sparsity"]["achieved"] - 0.6) < 0.02


def test_the_table_of_the_data_is_read_before_fields_are_compared():
    """The default recipe mixes every batch by boxes, but not digits: half of theirs can be mixed by weights."""
    small.write_npz("mnist.npz")
    fields = FAST | {"mixup": "0.5"}
    plan = prune.prepare(request(data="mnist.npz", overrides=fields), say=lambda text: None).plan
    assert (plan.recipe.cutmix, plan.recipe.mixup, plan.recipe.noise) == (0, 0.5, "blocks")
    assert "a batch is mixed in one way" in refused(overrides=fields)
    assert refused(data="absent.npz", overrides=FAST | {"mixup": "2"}) == "command line: mixup = 2.0, expected a number at most 1."


DROPPING = """
from torch import nn
from torch.nn import functional as F
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(144, 4)
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
    more = {"arch": f"{tmp_path}/own.py:net", "data": "grey.npz", "overrides": FAST | {"neighbour_weight": "1"}}
    if rate:
        assert refused(model, **more) == ("neighbour_weight = 1 compares answers to an image and to its noisy copy, but the model "
                                          "answers at random in training (dropout): nothing would be the noise's doing alone.")
        more["overrides"] = FAST
    job = prune.prepare(request(model, **more), say=lambda text: None)
    state = torch.random.get_rng_state()
    assert objective.random_in_training(job.subject.model, torch.rand(2, 1, 8, 8, generator=torch.Generator())) == (rate > 0)
    assert torch.equal(state, torch.random.get_rng_state()) and not job.subject.model.training
    assert torch.equal(job.subject.model.state_dict()["net.bn.running_mean"], torch.load(model)["bn.running_mean"])


def test_nothing_left_to_learn_from_another_teacher(tmp_path):
    """A recipe of hidden layers alone and a teacher that has others."""
    narrow = small.save(small.learn(small.LeNet(size=8, widths=(2, 8), hidden=16, num_classes=4)), tmp_path / "narrow.pt")
    (tmp_path / "hidden.toml").write_text("alpha = 0\nhidden_weight = 1\n")
    assert "nothing to learn from the teacher" in refused(teacher=narrow, recipe=str(tmp_path / "hidden.toml"))


@pytest.mark.parametrize(("able", "precision", "warned"), [(False, "bf16", True), (True, "bf16", False), (False, "float32", False)])
def test_bf16_without_instructions_for_it_is_said(monkeypatch, able, precision, warned):
    found = {"architecture": "x86_64", "avx512_bf16": able, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    said = []
    prune.prepare(request(overrides=FAST | {"precision": precision}, device="cpu"), say=said.append)
    assert any("bf16" in line and "slower than float32" in line for line in said) == warned


@pytest.mark.parametrize(("structure", "allocation"), [("unstructured", "global"), ("filter", "lamp"), ("column", "lamp")])
def test_auto_allocation_spares_small_layers_where_groups_differ_in_size(structure, allocation):
    job = prune.prepare(request(overrides=FAST | {"allocation": "auto"}, structure=structure), say=lambda text: None)
    assert job.plan.recipe.allocation == allocation
    assert config.read_recipe("default", data="cifar10").allocation == "auto"


@pytest.mark.parametrize(("found", "precision"), [
    ({"architecture": "x86_64", "avx512_bf16": True}, "bf16"), ({"architecture": "x86_64", "avx512_bf16": False}, "float32"),
    ({"architecture": "unheard of"}, "float32")])
def test_auto_precision_is_bf16_where_the_device_is_known_to_multiply_it(monkeypatch, found, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    said = []
    job = prune.prepare(request(overrides=FAST | {"precision": "auto"}, device="cpu"), say=said.append)
    assert job.plan.recipe.precision == precision
    assert not any("warning" in line for line in said)


def test_options_that_a_structure_cannot_have():
    assert refused(structure="filter", overrides=FAST | {"regrow": "0.1"}) == (
        "regrow cannot bring whole filters back: a silent filter has no gradient.")


@pytest.mark.parametrize(("kind", "regrow"), [("unstructured", 0.3), ("column", 0.3), ("filter", 0)])
def test_regrowing_of_the_recipe_yields_to_filters(kind, regrow, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("hidden_weight = 1\nnoise = 'blocks'\nregrow = 0.3\n")
    job = prune.prepare(request(structure=kind, recipe=str(recipe), overrides=FAST), say=print)
    assert job.plan.recipe.regrow == regrow
    assert refused(structure="column", overrides=FAST | {"start": "obs"}) == (
        "start = 'obs' reconstructs around single weights; --structure is column.")


def test_what_is_done_once_is_not_taken_for_steps(tmp_path, monkeypatch):
    """Against a clock: 1000 s before the first step, 20 s with it, then 2 s a step."""
    now, said = [0.0], []

    def fit(job, *, note):
        now[0] += 1000.0 + 20.0 + 19 * 2.0
        for step in (20, 40, 60, 2000):
            note(training.State(None, None, {}, None, step), {"loss": 1.0})
            now[0] += 40.0

    job = prune.prepare(request(), say=lambda text: None)
    job = replace(job, plan=replace(job.plan, steps=2000, sparsify_steps=1000, steps_per_epoch=100))
    monkeypatch.setattr(prune, "fit", fit)
    monkeypatch.setattr(prune.time, "perf_counter", lambda: now[0])
    prune._logged_fit(job, tmp_path, say=said.append, progress=lambda *_: None)
    weights = sum(job.subject.model.state_dict()[name].numel() for name in job.plan.weights)
    assert said == [str(estimate.Estimate(1098.0 + 1960 * 2.0, 2.0, 2000, job.plan.recipe.batch_size * weights / 1e6))]
    assert said[0].startswith("training: about 84 min on this machine (2 s a step x 2,000 steps; ")


def test_the_time_is_estimated_on_copies():
    job = prune.prepare(request(overrides=FAST | {"mix_ratio": "0.5"}), say=lambda text: None)
    weights = {name: t.clone() for name, t in job.subject.model.state_dict().items()}
    random = torch.random.get_rng_state()
    found = prune.time_to_fit(job)
    assert found.steps == job.plan.steps and 0 < found.seconds_per_step < found.seconds < 60
    assert all(torch.equal(t, weights[name]) for name, t in job.subject.model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())


def test_long_lists_of_layers_are_shortened():
    assert prune._some(list("abcdefghi")) == "a, b, c, d, e, f, g, h, i"
    assert prune._some(list("abcdefghij")) == "a, b, c, d, ..., j"
