"""Attacks against closed forms on linear models, foolbox sample by sample, and pyautoattack's own run."""
import copy
import sys
import tomllib
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from attack_checks import generator, linear, samples
from torch import nn
from torch.nn import functional as F

from pwoa_cli import attacks
from pwoa_cli.attacks import autoattack, base, gradient
from pwoa_cli.errors import InputError

NORMS, BATCHES = ("linf", "l2"), (1, 3, 8)
ALL_NORMS = base.GRADIENT_NORMS
PLUGIN = Path(__file__).parents[1] / "examples/plugin"
SHAPE = (1, 4, 4)
SHORT = {"apgd-ce": {"steps": 10}, "apgd-t": {"steps": 5}, "aa-fast": {"steps": 5}, "fab-t": {"steps": 4},
         "square": {"queries": 40}}


def worst_delta(model, x, y, eps, norm):
    """Closed form for two classes: the perturbation that raises z_other - z_y most, in the ball and in [0,1] (linf)."""
    w = model[1].weight
    slope = (w[1 - y] - w[y]).view_as(x)
    if norm == "l2":
        return eps * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return torch.where(slope > 0, (1 - x).clamp_max(eps), -x.clamp_max(eps))


@pytest.fixture(scope="module")
def trained():
    """A small ReLU net that separates ten noisy prototypes: (model, inputs, labels), robust for some samples only."""
    torch.set_num_threads(1)
    draw = generator(3)
    prototypes = torch.rand(10, 1, 8, 8, generator=draw)
    labels = torch.arange(400) % 10
    inputs = (prototypes[labels] + 0.25 * torch.randn(400, 1, 8, 8, generator=draw)).clamp(0, 1)
    with torch.random.fork_rng(()):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(),
                              nn.Linear(144, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimiser.step()
    return model.eval().requires_grad_(False), inputs, labels


@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("interior", [True, False])
def test_fgsm_is_the_exact_worst_case_of_a_linear_model(norm, n, interior):
    model, x = linear(), samples(n) if interior or norm == "l2" else samples(n, low=0, high=1)
    y = model(x).argmax(1)
    adv = gradient.fgsm(model, x, y, eps=0.2, norm=norm)
    torch.testing.assert_close(adv, x + worst_delta(model, x, y, 0.2, norm), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("norm", NORMS)
def test_pgd_breaks_exactly_the_samples_that_can_be_broken(norm, n, loss):
    model, x, eps = linear(seed=4), samples(n, seed=5), 0.03 if norm == "linf" else 0.08
    y = model(x).argmax(1)
    worst = x + worst_delta(model, x, y, eps, norm)
    adv = gradient.pgd(model, x, y, eps=eps, norm=norm, generator=generator(), steps=40, loss=loss)
    broken = model(worst).argmax(1) != y
    assert torch.equal(model(adv).argmax(1) != y, broken)
    left = 1e-6 if norm == "linf" else 2 * (8 / 9) ** 40 * eps  # each l2 step keeps 8/9 of what is not along the gradient
    torch.testing.assert_close(adv[~broken], worst[~broken], atol=left, rtol=0)


def test_the_linear_oracle_has_both_kinds_of_samples():
    for norm, eps in (("linf", 0.03), ("l2", 0.08)):
        model, x = linear(seed=4), samples(8, seed=5)
        y = model(x).argmax(1)
        assert 0 < (model(x + worst_delta(model, x, y, eps, norm)).argmax(1) != y).sum() < 8


def test_pgd_returns_the_first_misclassified_iterate():
    model, x = linear(), samples(8)
    y = model(x).argmax(1)
    alpha = 0.02
    adv = gradient.pgd(model, x, y, eps=0.3, norm="linf", generator=generator(), steps=15, step_size=alpha, random_start=False)
    direction = worst_delta(model, x, y, 0.3, "linf").sign()
    for i in range(8):
        path = [x[i:i + 1] + k * alpha * direction[i:i + 1] for k in range(16)]
        first = next((p for p in path if model(p).argmax(1) != y[i]), path[-1].clamp(x[i:i + 1] - 0.3, x[i:i + 1] + 0.3))
        torch.testing.assert_close(adv[i:i + 1], first, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["fgsm", "pgd-5", "pgd-5-r3", "cw", "apgd-ce", "apgd-t", "fab-t", "aa-fast"])
@pytest.mark.parametrize("norm", NORMS)
def test_an_already_wrong_sample_stays_wrong(norm, name):
    model, x = linear(classes=10), samples(3)
    y = (model(x).argmax(1) + torch.tensor([0, 1, 0])) % 10
    run = partial(attacks.parse(name)[0].run, **SHORT.get(name, {}))
    adv = run(model, x, y, eps=0.01, norm=norm, generator=generator())
    assert model(adv)[1].argmax() != y[1]


@pytest.mark.parametrize("name", ["fgsm", "pgd", "cw"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_gradient_moves_nothing_and_gives_no_nan(norm, name):
    dead = nn.Sequential(nn.Flatten(), nn.Threshold(2.0, 0.0), nn.Linear(16, 3))  # inputs never exceed 2
    x = samples(3)
    y = dead(x).argmax(1)
    run = attacks.parse(name)[0].run if name == "fgsm" else partial(attacks.parse(name)[0].run, random_start=False)
    assert torch.equal(run(dead, x, y, eps=0.2, norm=norm, generator=generator()), x)


@pytest.mark.parametrize("name", ["fgsm", "pgd-10-r2", "cw-10", "apgd-ce", "apgd-t", "fab-t", "square"])
@pytest.mark.parametrize("norm", NORMS)
def test_answers_stay_in_the_ball_and_in_the_box(trained, norm, name):
    model, x, y = trained
    x, y, eps = x[:8], y[:8], 0.1 if norm == "linf" else 0.6
    run = partial(attacks.parse(name)[0].run, **SHORT.get(name, {}))
    adv = run(model, x, y, eps=eps, norm=norm, generator=generator())
    assert adv.min() >= 0 and adv.max() <= 1
    assert base.distance(adv - x, norm).max() <= eps + base.SLACK


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_fill_the_ball_uniformly(norm):
    x = torch.full((4000, 1, 2, 2), 0.5)
    radius = base.distance(gradient._random_start(x, eps=0.2, norm=norm, generator=generator()) - x, norm) / 0.2
    for quantile in (0.25, 0.5, 0.75):  # P(radius < q) = q^d in both balls, d = 4
        assert abs(float((radius < quantile).float().mean()) - quantile**4) < 0.02


def test_ce_margin_gives_cross_entropy_and_its_direction():
    logits, labels = torch.randn(8, 5, generator=generator(), dtype=torch.float64).requires_grad_(), torch.arange(8) % 5
    m = gradient.ce_margin(logits, labels)
    cross_entropy = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(F.softplus(m), cross_entropy)
    direct, = torch.autograd.grad(cross_entropy.sum(), logits, retain_graph=True)
    ours, = torch.autograd.grad(m.sum(), logits)
    torch.testing.assert_close(direct, ours * torch.sigmoid(m)[:, None])


def test_rescaled_logits_do_not_hide_the_gradient():
    model, x = linear(seed=4, scale=1000.0), samples(8, seed=5)
    y = model(x).argmax(1)
    assert F.cross_entropy(model(x), y, reduction="none").min() == 0  # the plain loss is flat in float32
    adv = gradient.pgd(model, x, y, eps=0.08, norm="linf", generator=generator())
    worst = x + worst_delta(model, x, y, 0.08, "linf")
    assert torch.equal(model(adv).argmax(1), model(worst).argmax(1))


def test_restarts_only_add_broken_samples(trained):
    model, x, y = trained
    eps, broken = 0.12, []
    for restarts in (1, 4):
        adv = gradient.pgd(model, x, y, eps=eps, norm="linf", generator=generator(), steps=4, step_size=eps / 4,
                           restarts=restarts)
        broken.append(model(adv).argmax(1) != y)
    assert (broken[1] | ~broken[0]).all() and broken[1].sum() > broken[0].sum()


@pytest.mark.parametrize("norm,eps", [("linf", 0.12), ("l2", 0.6)])
def test_pgd_agrees_with_foolbox_sample_by_sample(trained, norm, eps):
    model, x, y = copy.deepcopy(trained[0]).double(), trained[1][:40].double(), trained[2][:40]
    ours = gradient.pgd(model, x, y, eps=eps, norm=norm, generator=generator(), steps=10, random_start=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox
        attack = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
        theirs, done = x.clone(), torch.zeros(40, dtype=torch.bool)
        for steps in range(1, 11):  # the first misclassified iterate of foolbox, which itself returns the last one
            last = attack(abs_stepsize=eps / 8, steps=steps, random_start=False)
            adv = last.run(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilon=eps).detach()
            theirs = torch.where(done.view(-1, 1, 1, 1), theirs, adv)
            done |= model(adv).argmax(1) != y
    assert 0 < done.sum() < 40
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["pgd-5", "cw-5", "apgd-ce", "square"])
def test_equal_seeds_give_equal_answers_and_torch_keeps_its_own(trained, name):
    model, x, y = trained
    run = partial(attacks.parse(name)[0].run, **SHORT.get(name, {}))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (run(model, x[:8], y[:8], eps=0.05, norm="linf", generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and torch.equal(before, torch.get_rng_state())
    assert name in ("apgd-ce", "square") or not torch.equal(first, other)


@pytest.mark.parametrize("name", ["fgsm", "pgd-10"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_sample_does_not_depend_on_its_neighbours(trained, norm, name):
    model, x, y = trained
    options = {"random_start": False} if name == "pgd-10" else {}
    run = partial(attacks.parse(name)[0].run, model, eps=0.1, norm=norm, generator=generator(), **options)
    whole = run(x[:8], y[:8])
    for size in (1, 3):
        parts = torch.cat([run(a, b) for a, b in zip(x[:8].split(size), y[:8].split(size))])
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm,eps", [("linf", 0.1), ("l2", 0.8)])
def test_aa_breaks_the_samples_that_pyautoattack_breaks(trained, norm, eps):
    from pyautoattack import AutoAttack

    model, x, y = trained
    x, y, seed = x[:24], y[:24], autoattack._seed(generator(7))
    reference = AutoAttack(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=seed, version="standard")
    for component in (reference.apgd, reference.apgd_targeted):
        component.n_iter, component.n_iter_2, component.n_iter_min, component.size_decr = 20, 4, 1, 1
    reference.fab.n_iter, reference.square.n_queries = 20, 60
    with torch.random.fork_rng(()):
        theirs, _ = reference.run_standard_evaluation(x, y, batch_size=24)
    ours = autoattack.aa(model, x, y, eps=eps, norm=norm, generator=generator(7), steps=20, queries=60)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)  # the quick copy sums in another order
    assert torch.equal(model(ours).argmax(1) == y, model(theirs).argmax(1) == y)
    assert 0 < (model(ours).argmax(1) == y).sum() < 20


@pytest.mark.parametrize("name", ["fab-t", "square"])
@pytest.mark.parametrize("n", BATCHES)
def test_components_equal_the_reference_alone(trained, name, n):
    from pyautoattack import AutoAttack

    model, x, y = trained
    x, y = x[:n], y[:n]
    reference = AutoAttack(model, norm="Linf", eps=0.15, seed=autoattack._seed(generator(7)), version="custom", attacks=[name])
    reference.fab.n_iter, reference.square.n_queries = 10, 80
    with torch.random.fork_rng(()):
        theirs, _ = reference.run_standard_evaluation(x, y)
    options = {"steps": 10} if name == "fab-t" else {"queries": 80}
    ours = attacks.FIXED[name].run(model, x, y, eps=0.15, norm="linf", generator=generator(7), **options)
    assert torch.equal(model(ours).argmax(1) != y, model(theirs).argmax(1) != y)


def test_few_classes():
    x = samples(4)
    for classes in (2, 3):
        model = linear(classes=classes)
        y = model(x).argmax(1)
        for name in ("apgd-ce", "fab-t"):
            adv = attacks.FIXED[name].run(model, x, y, eps=0.1, norm="linf", generator=generator(), **SHORT[name])
            assert adv.shape == x.shape
        with pytest.raises(InputError, match=f"at least 4 classes, the model has {classes}"):
            autoattack.aa(model, x, y, eps=0.1, norm="linf", generator=generator())
    with pytest.raises(InputError, match="at least 5x5"):
        autoattack.square(model, x, y, eps=0.1, norm="l2", generator=generator())


def test_parameters_keep_their_gradients_and_flags(trained):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    _, x, y = trained
    model.train()
    for name in ("pgd-2", "apgd-ce", "apgd-t", "fab-t"):
        run = partial(attacks.parse(name)[0].run, **SHORT.get(name, {}))
        run(model, x[:4], y[:4], eps=0.05, norm="linf", generator=generator())
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and model.training


def test_contain_projects_what_is_outside_and_leaves_the_rest():
    x = samples(4)
    adv = x.clone()
    adv[0] += 0.1
    adv[1] += 0.4
    adv[2] -= 5
    adv[3, 0, 0, 0] = float("nan")
    for norm, eps in (("linf", 0.2), ("l2", 0.5)):
        inside = base.contain(adv, x, eps=eps, norm=norm)
        assert torch.equal(inside[0], adv[0]) and torch.equal(inside[3], x[3])
        assert (base.distance(inside - x, norm) <= eps + base.SLACK).all() and inside.min() >= 0 and inside.max() <= 1


@pytest.mark.parametrize("given,resolved", [
    ("pgd", "pgd-20"), ("cw", "cw"), ("cw-20", "cw"), ("cw-40", "cw-40"), ("PGD-10", "pgd-10"), ("pgd-40-r5", "pgd-40-r5"),
    ("pgd-40-r1", "pgd-40"), ("pgd-40-s0.01", "pgd-40-s0.01"), ("pgd-40-r5-s2/255", "pgd-40-r5-s2/255"), ("cw-r5", "cw-20-r5"),
    (" aa ", "aa"), ("aa-fast", "aa-fast"), ("pgd,pgd-20, cw ,cw", "pgd-20,cw"), ("clean, fgsm", "fgsm"), ("clean", "")])
def test_names_resolve(given, resolved):
    assert ",".join(a.name for a in attacks.parse(given)) == resolved


def test_names_carry_their_settings():
    options = attacks.parse(["pgd-40-r5-s2/255"])[0].run.keywords
    assert options == {"steps": 40, "restarts": 5, "step_size": pytest.approx(2 / 255), "loss": "ce"}
    assert attacks.parse("cw")[0].run.keywords == {"steps": 20, "restarts": 1, "step_size": None, "loss": "margin"}


@pytest.mark.parametrize("name,says", [
    ("pdg", "Did you mean pgd"), ("appgd-ce", "Did you mean apgd-ce"), ("autoattack", "Unknown attack 'autoattack'"),
    ("pgd-0", "must be above 0"), ("pgd-10-r0", "must be above 0"), ("pgd-10-s0", "must be above 0"),
    ("pgd-10-s1/0", "must be above 0"), ("pgd-", "Unknown"), ("fgsm-3", "Unknown"), ("", "No attack"),
    ("pgd,,cw", "Unknown attack ''")])
def test_wrong_names_are_refused(name, says):
    with pytest.raises(InputError, match=says) as caught:
        attacks.parse(name)
    assert caught.value.hint


# --- targets, l1 -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("norm", ALL_NORMS)
@pytest.mark.parametrize("loss", ["fgsm", "ce", "margin"])
def test_targeted_goes_where_untargeted_goes_with_two_classes(norm, n, loss):
    model, x = linear(seed=4), samples(n, seed=5)
    y = model(x).argmax(1)
    run = gradient.fgsm if loss == "fgsm" else partial(gradient.pgd, loss=loss, random_start=False)
    plain, aimed = (run(model, x, y, eps=0.05, norm=norm, generator=generator(), targets=t) for t in (None, 1 - y))
    torch.testing.assert_close(plain, aimed)
    assert (plain != x).any()


@pytest.mark.parametrize("norm,eps", [("linf", 0.3), ("l2", 2.0), ("l1", 8.0)])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_targeted_pgd_reaches_each_class_and_stops_there(trained, norm, eps, loss):
    model, x, y = trained
    targets = (y[:8] + 1 + torch.arange(8)) % 10
    adv = gradient.pgd(model, x[:8], y[:8], eps=eps, norm=norm, generator=generator(), loss=loss, targets=targets)
    there = targets != y[:8]
    assert (model(adv).argmax(1) == targets)[there].float().mean() > 0.7
    already = model(x[:8]).argmax(1)
    same = gradient.pgd(model, x[:8], y[:8], eps=eps, norm=norm, generator=generator(), targets=already, random_start=False)
    assert torch.equal(same, x[:8])


def worst_l1(model, x, y, eps):
    """The best one-sample attack in the l1 ball and the box by filling pixels in the order of their slope, in a loop."""
    slope, moved, left = (model[1].weight[1 - y] - model[1].weight[y]), x.flatten().clone(), eps
    for i in slope.abs().argsort(descending=True).tolist():
        step = min(left, float(1 - moved[i]) if slope[i] > 0 else float(moved[i]))
        moved[i] += step * slope[i].sign()
        left -= step
    return moved.view_as(x)


@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("eps", [0.1, 1.5])
def test_fgsm_is_the_exact_worst_case_in_l1(n, eps):
    model, x = linear(seed=4), samples(n, seed=5, low=0, high=1)
    y = model(x).argmax(1)
    adv = gradient.fgsm(model, x, y, eps=eps, norm="l1")
    torch.testing.assert_close(adv, torch.stack([worst_l1(model, a, b, eps) for a, b in zip(x, y)]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_pgd_finds_the_worst_case_in_l1(loss):
    model, x, eps = linear(seed=4), samples(8, seed=5), 0.15
    y = model(x).argmax(1)
    worst = torch.stack([worst_l1(model, a, b, eps) for a, b in zip(x, y)])
    adv = gradient.pgd(model, x, y, eps=eps, norm="l1", generator=generator(), steps=40, loss=loss)
    broken = model(worst).argmax(1) != y
    assert torch.equal(model(adv).argmax(1) != y, broken) and 0 < broken.sum() < 8
    torch.testing.assert_close(adv[~broken], worst[~broken], atol=1e-5, rtol=0)


def test_projection_onto_the_l1_ball_is_the_nearest_point():
    """Slow oracle: theta by bisection; one radius for each sample, 0 among them."""
    x, adv = torch.full((6, 1, 4, 4), 0.5), samples(6, seed=3, low=0, high=1)
    eps = torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0, 50.0])
    got = base.project(adv, x, eps=eps, norm="l1") - x
    for i in range(6):
        delta, low, high = (adv - x)[i].double(), 0.0, 1.0
        for _ in range(60):
            theta = (low + high) / 2
            low, high = (low, theta) if (delta.abs() - theta).clamp_min(0).sum() <= eps[i] else (theta, high)
        want = delta if delta.abs().sum() <= eps[i] else delta.sign() * (delta.abs() - high).clamp_min(0)
        torch.testing.assert_close(got[i].double(), want, atol=1e-6, rtol=0)


def test_norms_that_an_attack_does_not_know_are_refused():
    attacks.check_norm(attacks.parse("fgsm,pgd,cw,fmn"), "l1")
    for name, norm, says in (("pgd,aa", "l1", "aa attacks in linf or l2, the norm asked for is l1"),
                             ("cw-l2", "linf", "cw-l2 attacks in l2, the norm asked for is linf")):
        with pytest.raises(InputError, match=says) as caught:
            attacks.check_norm(attacks.parse(name), norm)
        assert "pgd" in caught.value.hint


# --- plug-ins ----------------------------------------------------------------------------------------------------------

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


def test_a_plugin_that_ignores_the_generator_is_the_same_in_every_run(install):
    install("import torch\ndef attack(model, inputs, labels, *, norm, eps, generator):\n"
            "    return (inputs + eps * (torch.rand_like(inputs) - 0.5))\n")
    x, y = samples(3), torch.zeros(3, dtype=torch.long)
    run = partial(attacks.parse("made")[0].run, linear(), x, y, eps=0.1, norm="linf")
    state = torch.get_rng_state()
    assert torch.equal(run(generator=generator(1)), run(generator=generator(1)))
    assert not torch.equal(run(generator=generator(1)), run(generator=generator(2)))
    assert torch.equal(state, torch.get_rng_state())


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
    monkeypatch.setattr(attacks.plugins, "installed", lambda: pytest.fail("looked for plug-ins"))
    assert [a.name for a in attacks.parse("fgsm,pgd,cw,fmn-3,cw-l2,aa")] == ["fgsm", "pgd-20", "cw", "fmn-3", "cw-l2", "aa"]
