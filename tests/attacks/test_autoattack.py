"""AutoAttack's components against pyautoattack's own run, sample by sample, in every norm."""
import pytest
import torch
from helpers import attack_checks, small_models
from helpers.attack_checks import SHORT, generator, linear, samples
from helpers.odd_networks import images
from pyautoattack.square import SquareAttack
from torch import nn

from pwoa_cli import attacks
from pwoa_cli.attacks import autoattack, base
from pwoa_cli.errors import InputError

BATCHES = (1, 3, 8)


@pytest.fixture(scope="module")
def trained():
    return attack_checks.trained()


def drawn(source):
    """The seed that an attack draws for the components."""
    return int(torch.randint(2**31 - 1, (1,), generator=source))


@pytest.fixture
def components(monkeypatch):
    """[(component of pyautoattack as it was built, its inputs)]; none of them changes an input."""
    from pyautoattack import autopgd_base, fab_base, square

    built = []

    def perturb(self, x, y):
        built.append((self, x))
        return x

    for kind in (autopgd_base.APGDAttack, autopgd_base.APGDAttack_targeted, fab_base.FABAttack,
                 square.SquareAttack):
        monkeypatch.setattr(kind, "perturb", perturb)
    return built


def reference(model, *, norm, eps, steps, queries, only=None):
    """pyautoattack's standard version with fewer steps, or one component of it."""
    from pyautoattack import AutoAttack

    run = AutoAttack(model, norm=norm.capitalize(), eps=eps, seed=drawn(generator(7)), version="standard")
    for component in (run.apgd, run.apgd_targeted):
        component.n_iter = component.n_iter_orig = steps
        component.n_iter_2, component.n_iter_min, component.size_decr = max(int(0.22 * steps), 1), 1, 1
    run.fab.n_iter, run.square.n_queries = steps, queries
    run.attacks_to_run = [only] if only else run.attacks_to_run
    return run


@pytest.mark.parametrize("norm,eps", [("linf", 0.1), ("l2", 0.8), ("l1", 3.0)])
def test_aa_breaks_the_samples_that_pyautoattack_breaks(trained, norm, eps):
    model, x, y = trained
    x, y = x[:16], y[:16]
    with torch.random.fork_rng(()):
        standard = reference(model, norm=norm, eps=eps, steps=12, queries=40)
        theirs, _ = standard.run_standard_evaluation(x, y, batch_size=16)
    ours = autoattack.aa(model, x, y, eps=eps, norm=norm, generator=generator(7), steps=12, queries=40)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)  # the quick copy sums in another order
    assert torch.equal(model(ours).argmax(1) == y, model(theirs).argmax(1) == y)
    assert 0 < (model(ours).argmax(1) == y).sum() < 14


@pytest.mark.parametrize("name", ["fab-t", "square"])
@pytest.mark.parametrize("n", BATCHES)
def test_components_equal_the_reference_alone(trained, name, n):
    model, x, y = trained
    x, y = x[:n], y[:n]
    with torch.random.fork_rng(()):
        alone = reference(model, norm="linf", eps=0.15, steps=10, queries=80, only=name)
        theirs, _ = alone.run_standard_evaluation(x, y)
    options = {"steps": 10} if name == "fab-t" else {"queries": 80}
    ours = attacks.FIXED[name].run(model, x, y, eps=0.15, norm="linf", generator=generator(7), **options)
    assert torch.equal(model(ours).argmax(1) != y, model(theirs).argmax(1) != y)


@pytest.mark.parametrize("norm,eps", [("l2", 1.5), ("l1", 6.0)])
@pytest.mark.parametrize("name", autoattack.STANDARD)
@pytest.mark.parametrize("n", BATCHES)
def test_components_in_l2_and_l1_give_the_points_of_the_reference(trained, norm, eps, name, n):
    model, x, y = trained
    x, y = x[:n], y[:n]
    with torch.random.fork_rng(()):
        alone = reference(model, norm=norm, eps=eps, steps=10, queries=60, only=name)
        theirs, _ = alone.run_standard_evaluation(x, y)
    options = {"queries": 60} if name == "square" else {"steps": 10}
    ours = attacks.FIXED[name].run(model, x, y, eps=eps, norm=norm, generator=generator(7), **options)
    assert torch.equal(ours, theirs) and (n < 8 or not torch.equal(ours, x))


@pytest.mark.parametrize("norm", base.NORMS)
def test_the_settings_are_those_of_the_standard_version(trained, norm, components, monkeypatch):
    """Every attribute of every component with ten classes, but for the logger."""
    from pyautoattack import AutoAttack

    monkeypatch.setattr(autoattack, "quick", lambda model, inputs: model)  # a copy is another object
    model, x, y = trained
    theirs = AutoAttack(model, norm=norm.capitalize(), eps=0.5, seed=drawn(generator(7)), version="standard",
                        device=x.device)
    parts = theirs.apgd, theirs.apgd_targeted, theirs.fab, theirs.square
    for name, part in zip(autoattack.STANDARD, parts, strict=True):
        attacks.FIXED[name].run(model, x[:2], y[:2], eps=0.5, norm=norm, generator=generator(7))
        own = vars(components.pop()[0])
        set_at_call = {"fab-t": {"targeted": True}, "apgd-ce": {"loss": "ce"}}.get(name, {})
        assert own | {"logger": None} == vars(part) | set_at_call | {"logger": None}


@pytest.mark.parametrize("norm,targets", [("linf", 9), ("l2", 9), ("l1", 5)])
def test_targets_never_exceed_the_other_classes(norm, targets, components):
    for others in (3, 5, 9, 99):
        components.clear()
        for run in (autoattack.apgd_t, autoattack.fab_t):
            y = torch.zeros(2).long()
            run(linear(others + 1), samples(2), y, eps=0.5, norm=norm, generator=generator(), steps=1)
        counts = [component.n_target_classes for component, _ in components]
        assert counts == [min(targets, others), min(9, others)]


def test_few_classes():
    x = samples(4)
    for classes in (2, 3):
        model = linear(classes=classes)
        y = model(x).argmax(1)
        for name in ("apgd-ce", "fab-t"):
            adv = attacks.FIXED[name].run(model, x, y, eps=0.1, norm="linf", generator=generator(),
                                          **SHORT[name])
            assert adv.shape == x.shape
        with pytest.raises(InputError, match=f"at least 4 classes, the model has {classes}"):
            autoattack.aa(model, x, y, eps=0.1, norm="linf", generator=generator())
    for norm in ("l2", "l1"):
        with pytest.raises(InputError, match=f"norm {norm} needs images of at least 5x5"):
            autoattack.square(model, x, y, eps=0.1, norm=norm, generator=generator())


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_square_is_refused_where_its_tiles_leave_the_image(norm):
    """The reference broke there, for aa after its other three attacks: "pwoa itself broke: RuntimeError"."""
    for shape in [(12, 12), (14, 14), (24, 24), (32, 30), (32, 32), (28, 28), (8, 32), (5, 5), (13, 13)]:
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1], 5)), torch.rand(2, 1, *shape)
        y = model(x).argmax(1)
        broke, attack = False, SquareAttack(model, n_queries=1, eps=0.01, norm=norm.upper(), device="cpu")
        try:
            attack.perturb(x, y)
        except RuntimeError:
            broke = True
        assert broke is not autoattack.tiled(*shape), shape
        if broke:
            for name in ("square", "aa"):
                with pytest.raises(InputError, match=f"images of {shape[0]} x {shape[1]}"):
                    attacks.FIXED[name].run(model, x, y, eps=0.01, norm=norm, generator=generator())


def test_autoattack_asks_the_model_who_is_broken(components, monkeypatch):
    """A copy that says that all is broken must not end the attack: each component sees every sample."""
    class Liar(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 4).index_fill(1, torch.tensor([3]), 1.0)

    model, x, liar = small_models.lenet(), images(6, 1, 8, torch.float32), Liar()
    y = model(x).argmax(1)
    monkeypatch.setattr(autoattack, "quick", lambda *_: liar)
    adv = autoattack.aa(model, x, y, eps=0.1, norm="linf", generator=torch.Generator())
    kinds = ["APGDAttack", "APGDAttack_targeted", "FABAttack_PT", "Square"]  # of autoattack.STANDARD
    seen = [(type(component).__name__, len(given)) for component, given in components]
    assert seen == [(kind, 6) for kind in kinds] and len(kinds) == len(autoattack.STANDARD)
    assert torch.equal(adv, x)
