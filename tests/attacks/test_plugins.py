"""The plug-ins of installed packages: found by name, checked, named with their package where they fail."""
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import attack_checks
from helpers.attack_checks import generator, linear, samples

from pwoa_cli import attacks
from pwoa_cli.attacks import base, bounded, plugins
from pwoa_cli.errors import InputError

PLUGIN = Path(__file__).parents[2] / "examples/plugin"


@pytest.fixture(scope="module")
def trained():
    return attack_checks.trained()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(code, name=...) -> the plug-in on sys.path with a made dist-info, as pip would leave it."""
    def put(code, module="made_up", entry="made = made_up:attack", package="made-up"):
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{package.replace('-', '_')}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[pwoa.attacks]\n{entry}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, module, raising=False)

    yield put
    for module in ("made_up", "made_up_too", "pwoa_attack_noise"):
        sys.modules.pop(module, None)


def test_the_example_plugin_works_as_its_pyproject_says(install, trained):
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())
    (name, where), = project["project"]["entry-points"]["pwoa.attacks"].items()
    module, = project["tool"]["setuptools"]["py-modules"]
    install((PLUGIN / f"{module}.py").read_text(), module, f"{name} = {where}", project["project"]["name"])
    model, x, y = trained
    attack, = attacks.parse("Noise")
    assert attack.name == "noise"
    for norm, eps in (("linf", 0.2), ("l2", 1.0), ("l1", 5.0)):
        adv = attack.run(model, x[:8], y[:8], eps=eps, norm=norm, generator=generator())
        assert base.distance(adv - x[:8], norm).max() <= eps * (1 + 1e-5)
        assert torch.equal(adv, attack.run(model, x[:8], y[:8], eps=eps, norm=norm, generator=generator()))


@pytest.mark.parametrize("body,says", [
    ("raise ValueError('no such norm\\nmore')", "raised ValueError: no such norm"),
    ("return None", "returned NoneType, expected a tensor of shape"),
    ("return inputs[:1]", r"returned torch.float32 \(1, 1, 4, 4\), expected torch.float32 \(3, 1, 4, 4\)"),
    ("return inputs.double()", "returned torch.float64"),
    ("inputs[0] = float('nan'); return inputs", "returned NaN or infinite pixels for 1 of 3 inputs"),
    ("return inputs + 0.9", "returned pixels in"),
    ("return 1 - inputs", "left the ball: linf distance 0.3.*, expected at most eps 0.1")])
def test_a_faulty_plugin_is_named(install, body, says):
    install(f"def attack(model, inputs, labels, *, norm, eps, generator):\n    {body}\n")
    x, y = samples(3), torch.zeros(3, dtype=torch.long)
    before = x.clone()
    with pytest.raises(InputError, match="Attack 'made' of package made-up 0.1.0 " + says) as caught:
        attacks.parse("made")[0].run(linear(), x, y, eps=0.1, norm="linf", generator=generator())
    assert caught.value.hint and "\n" not in caught.value.message and torch.equal(x, before)


class Odd(torch.nn.Module):
    """With a batch norm, and a buffer that no state dict has."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = torch.nn.BatchNorm2d(1), torch.nn.Linear(16, 4)
        self.register_buffer("mean", torch.tensor([0.5, float("nan")]), persistent=False)

    def forward(self, x):
        return self.head(self.norm(x - self.mean[0]).flatten(1))


@pytest.mark.parametrize("body, says", [
    ("model.head.weight.data.mul_(2)", "1 of 8 weights and buffers (head.weight)"),
    ("model.head.weight = torch.nn.Parameter(model.head.weight * 2)",
     "1 of 8 weights and buffers (head.weight)"),
    ("model.head.weight.data[0, 0] = float('nan'); model.head.bias.data.zero_()",
     "2 of 8 weights and buffers (head.weight, head.bias)"),
    ("model.mean.add_(1)", "1 of 8 weights and buffers (mean)"),
    ("model.train()(inputs); model.eval()",
     "3 of 8 weights and buffers (norm.running_mean, norm.running_var, ...)"),
    ("model.norm.train()", "train or eval mode of 1 of 3 modules (norm)"),
    ("model.train()", "train or eval mode of 3 of 3 modules (the model itself, norm, ...)"),
    ("model.half()", "8 weights and buffers"),
    ("model.register_buffer('own', inputs)", "1 of 8 weights and buffers (own)"),
    ("model.train(); model.head.bias.data.add_(1)", "(head.bias) and train or eval mode of 3 of 3"),
    ("model.head.bias.data.add_(1); raise ValueError('late')", "raised ValueError: late")])
def test_a_plugin_that_changes_the_model_is_named_and_the_model_restored(install, body, says):
    install("import torch\ndef attack(model, inputs, labels, *, norm, eps, generator):\n"
            f"    {body}\n    return inputs\n")
    model, x = Odd().eval(), samples(3)
    before = model(x).detach()
    with pytest.raises(InputError, match="Attack 'made' of package made-up 0.1.0 ") as caught:
        attacks.parse("made")[0].run(model, x, torch.zeros(3).long(), eps=0.1, norm="linf",
                                     generator=generator())
    assert says in caught.value.message and caught.value.hint and "\n" not in caught.value.message
    assert torch.equal(model(x), before) and not any(m.training for m in model.modules())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert [name for name, _ in model.named_buffers()] == [
        "mean", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]


@pytest.mark.parametrize("body", [
    "model.eval()", "model.requires_grad_(True)", "model.train(); model.eval()",
    "model.head.weight.data.add_(0)", "model(inputs.requires_grad_()).sum().backward()"])
def test_a_plugin_that_leaves_the_model_as_it_was_is_not_accused(install, body):
    install("def attack(model, inputs, labels, *, norm, eps, generator):\n"
            f"    {body}\n    return inputs.detach()\n")
    model, x = Odd().eval().requires_grad_(False), samples(3)
    adv = attacks.parse("made")[0].run(model, x, torch.zeros(3).long(), eps=0.1, norm="linf",
                                       generator=generator())
    assert torch.equal(adv, x) and not any(p.requires_grad for p in model.parameters())


def test_a_plugin_that_ignores_the_generator_is_the_same_in_every_run(install):
    install("import torch\ndef attack(model, inputs, labels, *, norm, eps, generator):\n"
            "    return (inputs + eps * (torch.rand_like(inputs) - 0.5))\n")
    x, y = samples(3), torch.zeros(3, dtype=torch.long)
    run = partial(attacks.parse("made")[0].run, linear(), x, y, eps=0.1, norm="linf")
    state = torch.get_rng_state()
    assert torch.equal(run(generator=generator(1)), run(generator=generator(1)))
    assert not torch.equal(run(generator=generator(1)), run(generator=generator(2)))
    assert torch.equal(state, torch.get_rng_state())


def test_a_plugin_says_which_release_it_is(install):
    code = "def attack(model, inputs, labels, *, norm, eps, generator):\n    return inputs\n"
    install(code)
    first = attacks.parse("made")[0].version
    assert first.startswith("made-up 0.1.0 ") and attacks.parse("made")[0].version == first
    Path(sys.modules["made_up"].__file__).write_text(code + "# another attack\n")
    assert attacks.parse("made")[0].version != first


@pytest.mark.parametrize("error", [
    "MemoryError()", "RuntimeError(\"DefaultCPUAllocator: can't allocate memory\")", "OutOfTime()"])
def test_what_is_the_machines_and_not_the_plugins_fault_passes_through(install, error):
    install("from pwoa_cli.attacks.bounded import OutOfTime\n"
            "def attack(model, inputs, labels, *, norm, eps, generator):\n"
            f"    try:\n        raise {error}\n    except Exception as caught:\n        raise caught\n")
    kind = {"M": MemoryError, "R": RuntimeError, "O": bounded.OutOfTime}[error[0]]
    with pytest.raises(kind):
        run = attacks.parse("made")[0].run
        run(linear(), samples(3), torch.zeros(3).long(), eps=0.1, norm="linf", generator=generator())


@pytest.mark.parametrize("code,says", [
    ("import nothing_of_that_name", "cannot be loaded from made_up:attack: ModuleNotFoundError"),
    ("attack = 3", "is int made_up:attack, expected a function")])
def test_a_plugin_that_cannot_be_used_is_refused_before_anything_runs(install, code, says):
    install(code)
    with pytest.raises(InputError, match="Attack 'made' of package made-up 0.1.0 " + says):
        attacks.parse("pgd,made")


def test_two_packages_with_one_name_are_refused_and_near_names_are_told(install):
    install("attack = print")
    with pytest.raises(InputError, match="Did you mean made") as caught:
        attacks.parse("maed")
    assert caught.value.hint.endswith("made")
    install("attack = print", "made_up_too", "Made = made_up_too:attack", "made-up-too")
    with pytest.raises(InputError, match="defined by made-up 0.1.0 and made-up-too 0.1.0"):
        attacks.parse("made")


def test_built_in_names_never_look_for_plugins(install, monkeypatch):
    install("attack = print", entry="pgd = made_up:attack")
    monkeypatch.setattr(plugins, "installed", lambda: pytest.fail("looked for plug-ins"))
    names = [a.name for a in attacks.parse("fgsm,pgd,cw,fmn-3,cw-l2,aa")]
    assert names == ["fgsm", "pgd-20", "cw", "fmn-3", "cw-l2", "aa"]
