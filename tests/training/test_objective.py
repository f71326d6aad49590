"""The loss of a batch: which terms a recipe asks for, on which images; no gradient for the teacher."""
import copy
from dataclasses import fields, replace

import pytest
import torch
from helpers.plans import EVERYTHING
from helpers.small_models import lenet, resnet
from torch import nn
from torchvision.models import resnet18

from pwoa_cli.losses import distill
from pwoa_cli.networks import layers
from pwoa_cli.training import objective
from pwoa_cli.training.recipe import Recipe


def world(make=resnet, *, perturb=0.05, **changes):
    """Teacher, a student beside it, and the keyword arguments of objective.terms."""
    teacher = make().eval()
    student = copy.deepcopy(teacher)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(perturb * torch.randn(p.shape, generator=generator))
    clean = torch.rand(6, 3 if make is resnet else 1, 8, 8, generator=generator)
    x = (clean + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
    batch = objective.Batch(x, clean, torch.arange(6) % 4)
    hidden = layers.hidden_layers(teacher, x)
    arguments = {"student": student, "teacher": teacher, "hidden": hidden, "batch": batch, "num_classes": 4}
    return replace(Recipe(), **changes), arguments


@pytest.mark.parametrize(("changes", "names"), [
    ({"alpha": 0.0, "hidden_weight": 1.0}, {"hidden"}),
    ({"alpha": 0.0, "clean_weight": 1.0, "logit_weight": 1.0}, {"logit"}),
    ({"lambda_x": 1.0}, {"kl", "hsic_x"}), ({"lambda_y": 1.0}, {"kl", "hsic_y"})])
def test_a_term_of_weight_0_is_not_made(changes, names):
    recipe, arguments = world(**changes)
    assert set(objective.terms(recipe, **arguments)) == names


def test_the_label_term_of_mixed_images_is_that_of_their_soft_labels():
    """One-hot soft labels are the labels; half of two classes is neither."""
    recipe, arguments = world(lambda_y=1.0)
    batch = arguments["batch"]
    hot = torch.nn.functional.one_hot(batch.labels, 4).float()
    found = []
    for soft in (None, hot, (hot + hot.roll(1, 0)) / 2):
        arguments |= {"batch": batch._replace(soft=soft), "student": copy.deepcopy(arguments["student"])}
        found.append(objective.terms(recipe, **arguments)["hsic_y"].item())
    assert found[0] == found[1] != pytest.approx(found[2], rel=1e-3)


def test_every_term_has_a_weight_and_no_term_is_made_in_vain():
    recipe, arguments = world(**EVERYTHING)
    assert set(objective.terms(recipe, **arguments)) | {"admm"} == set(objective.weights(recipe))
    weights = objective.weights(replace(recipe, alpha=3.0, temperature=2.0))
    assert (weights["kl"], weights["clean"], weights["hsic_y"]) == (12, pytest.approx(0.4 * 12), -0.2)
    for f in fields(Recipe):
        if f.name.endswith("_weight") or f.name.startswith("lambda"):
            recipe = replace(recipe, **{f.name: 0.0})
    assert set(objective.terms(recipe, **arguments)) == {"kl"}


def test_terms_are_those_of_separate_passes():
    """Oracle: each image through each model on its own, possible without batch statistics."""
    recipe, arguments = world(lenet, **EVERYTHING)
    batch, names = arguments["batch"], arguments["hidden"]
    found = objective.terms(recipe, **arguments)
    outputs = {}
    for who in ("student", "teacher"):
        for kind in ("x", "clean"):
            with layers.capture(arguments[who], names) as z:
                outputs[who, kind] = arguments[who](getattr(batch, kind)), list(z)
    (s, z), (t, z_t) = outputs["student", "x"], outputs["teacher", "x"]
    (s_clean, _), (t_clean, _) = outputs["student", "clean"], outputs["teacher", "clean"]
    want = {"kl": distill.kl(s, t, temperature=4), "clean": distill.kl(s_clean, t_clean, temperature=4),
            "logit": distill.logit_error(s, t), "neighbour": distill.logit_error(s - s_clean, t - t_clean),
            "hidden": distill.hidden_error(z, z_t, kind="channels")}
    for name, value in want.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_bf16_terms_are_the_float32_ones_to_its_digits():
    for make in (lenet, resnet):
        recipe, arguments = world(make, **EVERYTHING)
        full, coarse = (objective.terms(replace(recipe, precision=p), **arguments)
                        for p in ("float32", "bf16"))
        assert all(value.dtype == torch.float32 for value in coarse.values())
        for name, value in full.items():
            # a difference of nearly equal logits keeps few of the 8 bits of bf16
            few = 0.25 if name == "neighbour" else 0.05
            assert coarse[name].item() == pytest.approx(value.item(), rel=few), name
        assert any(coarse[name] != full[name] for name in full)  # it is another arithmetic
        sum(coarse.values()).backward()
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in arguments["student"].parameters())


def test_the_same_model_has_nothing_to_learn():
    recipe, arguments = world(perturb=0.0, **EVERYTHING | {"lambda_x": 0.0, "lambda_y": 0.0})
    arguments["student"].eval()
    for name, value in objective.terms(recipe, **arguments).items():
        assert value.item() == pytest.approx(0, abs=1e-5), name


def test_maps_are_those_of_the_last_layer_with_positions():
    """Known for the residual network, which pools and has a linear head; LeNet's layers end with units."""
    recipe, arguments = world(explain_weight=1.0, perturb=0.3)
    maps, x = [], arguments["batch"].x
    with torch.no_grad():
        chosen = arguments["teacher"](x).argmax(1)
        # it is the teacher's class that counts for both
        assert not torch.equal(chosen, arguments["student"](x).argmax(1))
        for who in ("student", "teacher"):
            model = arguments[who].eval()
            with layers.capture(model, arguments["hidden"]) as z:
                model(x)
            maps.append(torch.einsum("bc,bchw->bhw", model.linear.weight[chosen], z[-1]).flatten(1))
    want = distill.map_error(*maps).item()
    found = objective.terms(recipe, **arguments)["explain"].item()
    assert want > 1e-3 and found == pytest.approx(want, rel=1e-4)
    recipe, arguments = world(lenet, explain_weight=1.0)
    assert objective.terms(recipe, **arguments)["explain"].item() > 1e-4


class Pooled(nn.Module):
    """Its last hidden layer is a map of one position: (B, C, 1, 1)."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x).relu()).flatten(1))


def test_a_map_of_one_position_is_none():
    """The last layer with more of them is taken; where there is none, its channels stand for positions."""
    torch.manual_seed(0)
    recipe, arguments = world(explain_weight=1.0)
    arguments |= {"teacher": Pooled().eval(), "student": Pooled().eval()}
    x, teacher, student = arguments["batch"].x, arguments["teacher"], arguments["student"]
    both = objective.terms(recipe, **arguments | {"hidden": ["conv", "pool"]})["explain"]
    assert both.item() == objective.terms(recipe, **arguments | {"hidden": ["conv"]})["explain"].item()
    alone = objective.terms(recipe, **arguments | {"hidden": ["pool"]})["explain"]
    with torch.no_grad():
        chosen = teacher(x).argmax(1)
        maps = [m.fc.weight[chosen] * m.conv(x).relu().mean((2, 3)) for m in (student, teacher)]
    assert alone.item() == pytest.approx(distill.map_error(*maps).item(), rel=1e-5)
    alone.backward()
    assert student.fc.weight.grad.abs().max() > 1e-4


def test_maps_are_those_of_the_noisy_images_alone():
    """Clean copies that go through the models for another term add nothing, without batch statistics."""
    recipe, arguments = world(explain_weight=1.0, perturb=0.3)
    arguments["student"].eval()
    alone = objective.terms(recipe, **arguments)["explain"].item()
    with_copies = objective.terms(replace(recipe, clean_weight=1.0), **arguments)["explain"].item()
    arguments |= {"batch": arguments["batch"]._replace(x=arguments["batch"].clean)}
    clean = objective.terms(recipe, **arguments)["explain"].item()
    assert with_copies == pytest.approx(alone, rel=1e-4) and abs(clean - alone) > 0.01 * alone


def test_bf16_is_the_arithmetic_of_both_models():
    recipe, arguments = world(lenet, precision="bf16")
    seen = {}
    for who in ("student", "teacher"):
        first = next(m for m in arguments[who].modules() if isinstance(m, nn.Conv2d))
        first.register_forward_hook(lambda _m, _a, out, who=who: seen.update({who: out.dtype}))
    found = objective.terms(recipe, **arguments)
    assert seen == {"student": torch.bfloat16, "teacher": torch.bfloat16}
    assert found["kl"].dtype == torch.float32
    objective.terms(replace(recipe, precision="float32"), **arguments)
    assert seen == {"student": torch.float32, "teacher": torch.float32}


class Inplace(nn.Module):
    """Layers that write on the hidden layer before them."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(self.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("make", [resnet, lenet, Inplace])
def test_the_teacher_gets_no_gradient_and_may_be_frozen(make, frozen):
    recipe, arguments = world(resnet if make is Inplace else make, **EVERYTHING)
    if make is Inplace:
        torch.manual_seed(0)
        arguments |= {"teacher": Inplace().eval(), "student": Inplace(), "hidden": ["conv"]}
    arguments["student"].train()
    again = arguments | {"student": copy.deepcopy(arguments["student"])}
    want = {name: value.item() for name, value in objective.terms(recipe, **again).items()}
    arguments["teacher"].requires_grad_(not frozen)
    found = objective.terms(recipe, **arguments)
    assert {name: value.item() for name, value in found.items()} == want
    sum(found.values()).backward()
    assert all(p.grad is None for p in arguments["teacher"].parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in arguments["student"].parameters())


def test_clean_copies_share_their_statistics_with_the_noisy_images():
    """Batch norm in training mode sees both, so identical copies give identical logits: no reaction where
    there is no noise."""
    recipe, arguments = world(neighbour_weight=1.0)
    seen = []
    arguments["student"].train().register_forward_hook(
        lambda _m, args, out: seen.append((args[0].shape, out.detach())))
    batch = arguments["batch"]
    objective.terms(recipe, **arguments | {"batch": batch._replace(x=batch.clean)})
    (shape, logits), = seen
    assert shape[0] == 12 and torch.allclose(logits[:6], logits[6:], atol=1e-6)


def test_hidden_layers_that_are_overwritten_have_a_gradient():
    """torchvision's blocks write on what they have: a ReLU in place, a sum on the second norm's output."""
    torch.manual_seed(0)
    teacher, x = resnet18(num_classes=4).eval(), torch.rand(4, 3, 32, 32)
    student, names = copy.deepcopy(teacher).train(), layers.hidden_layers(teacher, x, "inner")
    batch = objective.Batch(x, x, torch.arange(4))
    loss = objective.terms(Recipe(alpha=0.0, hidden_weight=1.0), student=student, teacher=teacher,
                           hidden=names, batch=batch, num_classes=4)
    loss["hidden"].backward()
    grads = [m.weight.grad for m in student.modules() if isinstance(m, nn.Conv2d)]
    assert len(grads) == 20 and all(g.isfinite().all() and g.abs().sum() > 0 for g in grads)
