"""What a step sees: noise and mixing as the recipe says, attacked batches within the threat model."""
from dataclasses import replace

import pytest
import torch
from helpers.plans import make_plan

from pwoa_cli.attacks import gradient
from pwoa_cli.attacks.base import distance
from pwoa_cli.data import datasets
from pwoa_cli.training import augmentation, inputs


def test_a_batch_has_the_recipe_s_noise_and_clean_images():
    plan, _ = make_plan(noise="sign", noise_scale=2.0, noise_clean=0.25)
    batch = inputs.batch(plan, 0)  # 16 images, eps 0.1
    moved = (batch.x - batch.clean).abs().amax((1, 2, 3))
    assert not moved[:4].any() and torch.allclose(moved[4:], torch.tensor(0.2), atol=1e-6)
    plan, _ = make_plan(noise="gaussian", gaussian_scale=0.3)
    assert 0.3 < (inputs.batch(plan, 0).x - inputs.batch(plan, 0).clean).abs().max() <= 1


@pytest.mark.parametrize("changes", [
    {"cutmix": 0.4, "mixup": 0.6}, {"cutmix": 0.0, "mixup": 0.5}, {"cutmix": 0.5, "mixup": 0.0}])
def test_a_batch_is_mixed_in_one_way_or_not(changes, monkeypatch):
    calls = []
    for name in ("cutmix", "mixup"):
        way = getattr(augmentation, name)
        monkeypatch.setattr(augmentation, name, lambda x, *, generator, name=name, way=way: (
            calls.append(name) or way(x, generator=generator)))
    plan, _ = make_plan(**changes)
    batches = [inputs.batch(plan, step) for step in range(40)]
    assert len(calls) == sum(batch.soft is not None for batch in batches)
    assert all(batch.soft.shape == (16, 3) for batch in batches if batch.soft is not None)
    for name, probability in changes.items():
        assert abs(calls.count(name) - 40 * probability) < 10 * (probability > 0) + 0.5


def test_sign_noise_lies_on_the_ball_of_the_threat_model_whatever_its_norm():
    """An l2 or l1 radius is that of the whole image: as a step of each pixel it would drown the image."""
    plan, _ = make_plan()
    grey = datasets.Split(images=torch.full_like(plan.split.images, 128), labels=plan.split.labels)
    for norm, eps, order in (("linf", 0.1, float("inf")), ("l2", 0.5, 2), ("l1", 4.0, 1)):
        batch = inputs.batch(replace(plan, norm=norm, eps=eps, split=grey), 0)
        size = torch.linalg.vector_norm((batch.x - batch.clean).flatten(1), ord=order, dim=1)
        torch.testing.assert_close(size, torch.full((16,), eps), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_fraction_of_the_batches_is_attacked(norm):
    plan, student = make_plan(mix_ratio=0.4, noise="none")
    plan = replace(plan, norm=norm, eps=0.2)
    attacked = 0
    for now in range(40):
        batch = inputs.batch(plan, now)
        made = inputs.attacked(plan, student.train(), batch, now)
        assert student.training and all(p.requires_grad for p in student.parameters())
        assert distance(made.x - batch.x, norm).max() <= 0.2 + 1e-6
        assert made.x.min() >= 0 and made.x.max() <= 1
        attacked += not torch.equal(made.x, batch.x)
    assert 8 <= attacked <= 24  # 16 expected, three deviations


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacked_images_lie_around_the_image_and_not_around_its_noisy_copy(norm):
    """Noise of several eps: a ball around the noisy image would leave the threat model."""
    plan, student = make_plan(mix_ratio=1.0, noise="sign", noise_scale=3.0, cutmix=0.5)
    plan = replace(plan, norm=norm, eps=0.1)
    for now in range(4):
        batch = inputs.batch(plan, now)
        made = inputs.attacked(plan, student, batch, now)
        away = distance(made.x - batch.clean, norm)
        assert 0 < away.max() <= 0.1 + 1e-6 and made.x.min() >= 0 and made.x.max() <= 1
        assert made.clean is batch.clean and made.labels is batch.labels
        assert made.soft is batch.soft
        assert distance(batch.x - batch.clean, norm).max() > 0.11


@pytest.mark.parametrize("mixed", [False, True])
def test_what_the_attack_is_told(monkeypatch, mixed):
    """Labels where they hold, else the teacher's answers; ten steps of eps/4 that nobody leaves."""
    plan, student = make_plan(mix_ratio=1.0, cutmix=float(mixed), gaussian_scale=0.5, noise="gaussian")
    batch, told = inputs.batch(plan, 3), []
    assert (batch.soft is not None) == mixed
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    batch = batch._replace(labels=batch.labels[order])
    with torch.no_grad():
        answers = plan.teacher(batch.clean).argmax(1)
        assert not torch.equal(answers, batch.labels)
        assert not torch.equal(answers, plan.teacher(batch.x).argmax(1))
    monkeypatch.setattr(gradient, "pgd", lambda model, x, y, **how: told.append((model, x, y, how)) or x + 0)
    inputs.attacked(plan, student, batch, 3)
    (model, x, y, how), = told
    assert model is student and torch.equal(x, batch.clean)
    assert torch.equal(y, answers if mixed else batch.labels)
    assert isinstance(how.pop("generator"), torch.Generator)
    assert how == {"eps": plan.eps, "norm": "linf", "steps": 10, "step_size": plan.eps / 4,
                   "every_step": True}
