"""Two models on the same samples: the drop where both are finished, findings said once, side by side in
time."""
import copy

import pytest
import torch
from helpers.problems import centred

from pwoa_cli.attacks import Attack
from pwoa_cli.data import datasets
from pwoa_cli.data.samples import View
from pwoa_cli.evaluation.comparison import compare, findings, measure, notes
from pwoa_cli.evaluation.evaluate import evaluate
from pwoa_cli.evaluation.intervals import discordant, paired_drop
from pwoa_cli.evaluation.results import Evaluation, Finding, Result, unfinished_json
from pwoa_cli.evaluation.words import WORST, in_points


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)


def line(name, correct, done=None):
    done = torch.ones_like(correct) if done is None else done
    return Result(name, correct & done, done=done, attacked=done, broken=done & ~correct, seconds=0.0,
                  distance=torch.full(correct.shape, torch.nan))


def evaluation(*lines, unfinished=(), found=()):
    return Evaluation({each.name: each for each in lines}, findings=found, broken_by=(),
                      unfinished=unfinished)


def test_the_drop_is_that_of_attacks_which_both_are_finished_with():
    right, left = flags(1, 1, 1, 0), flags(1, 0, 1, 0)
    teacher = evaluation(line("clean", right), line("pgd-20", right), line("cw", right))
    student = evaluation(line("clean", left), line("pgd-20", left), line("fgsm", left))
    found = compare(teacher, student)
    assert list(found) == ["clean", "pgd-20"]
    drop, (low, high) = paired_drop(right, left)
    lost, won, p = discordant(right, left)
    points = {"points": 100 * drop, "ci95": [100 * low, 100 * high]}
    assert found["pgd-20"] == found["clean"] == points | {"lost": lost, "won": won, "p": p}
    assert (drop, lost, won) == (0.25, 1, 0)


@pytest.mark.parametrize("cut", [0, 1, 2, 3, None])
def test_models_go_side_by_side_and_what_is_unfinished_is_no_figure(cut):
    """Time ends in the `cut`-th of four blocks of attacks: teacher, pruned, teacher, pruned."""
    model, x, _ = centred(300)
    view = View(datasets.Split((x * 255).byte(), model(x).argmax(1)), torch.arange(300))
    order = []

    def attack(net, inputs, labels, **_):
        if len(order) == cut:
            net.meter.deadline = 0.0
        net(inputs[:1])
        order.append(len(inputs))
        return inputs

    found = measure({"teacher": model, "pruned": copy.deepcopy(model)}, view, norm="linf", eps=0.2, seed=0,
                    attack_names=[Attack("quiet", attack), Attack("still", lambda net, x, y, **_: x)],
                    progress=lambda *_: None, say=lambda _: None)
    blocks = [200, 200, 100, 100][:cut]
    assert len(order) == len(blocks)
    for who, mine in (("teacher", blocks[0::2]), ("pruned", blocks[1::2])):
        done, n = found[who], sum(mine)
        still = n if len(blocks) % 2 == 0 else sum(blocks[0::2][:-1])  # it goes on when both are through
        if still == 300:
            assert list(done) == ["clean", "quiet", "still",
                                  WORST] and not done.unfinished and not done.partial
        else:
            whole = ["quiet"] if n == 300 else []
            assert list(done) == ["clean", *whole] and done.unfinished == ("quiet", "still")[len(whole):]
            parts = {name: part.n for name, part in done.partial.items()}
            assert parts == {name: k for name, k in (("quiet", n), ("still", still)) if 0 < k < 300}
            assert unfinished_json(done, 300)["still"]["n"] == still
    assert list(compare(found["teacher"], found["pruned"])) == (
        ["clean", "quiet", "still", WORST] if cut is None else ["clean"])


def test_a_finding_of_all_models_is_said_once_and_says_whose_it_is():
    random, coarse = (Finding("random-model", "it is random.", True),
                      Finding("coarse-logits", "it is coarse.", False))
    found = {"teacher": evaluation(found=[random]), "pruned": evaluation(found=[random, coarse])}
    assert findings(found) == [
        {"check": "random-model", "unreliable": True, "text": "it is random.",
         "models": ["teacher", "pruned"]},
        {"check": "coarse-logits", "unreliable": False, "text": "it is coarse.", "models": ["pruned"]}]
    assert notes(found) == ["unreliable: teacher and pruned: it is random.", "pruned: it is coarse."]
    assert notes({"model": evaluation(found=[random])}) == ["unreliable: it is random."]


def test_points_are_hundredths():
    assert in_points(0.25, (-0.5, 1.0)) == {"points": 25.0, "ci95": [-50.0, 100.0]}


def test_models_are_measured_on_the_same_samples_and_progress_ends_at_its_whole():
    model, x, _ = centred(30)
    view = View(datasets.Split((x * 255).byte(), model(x).argmax(1)), torch.arange(30))
    asked, told = [], []
    found = measure({"teacher": model, "pruned": model}, view, norm="linf", eps=0.2,
                    attack_names="fgsm,pgd-2",
                    seed=3, progress=lambda *step: told.append(step), say=lambda text: None,
                    unfinished=lambda who, sha256: asked.append((who, sha256)))
    alone = evaluate(model, view, view.labels, attacks="fgsm,pgd-2", norm="linf", eps=0.2, seed=3)
    assert list(found) == ["teacher", "pruned"] and [who for who, _ in asked] == ["teacher", "pruned"]
    assert asked[0][1] == asked[1][1]  # the same samples, and predictions
    for each in found.values():
        assert all(torch.equal(each[name].correct, alone[name].correct) for name in alone)
    steps = [done for _, done, _, _ in told]
    assert steps == sorted(steps) and told[-1] == ("evaluate", 2000, 2000, "")
    assert {title.split()[0] for _, _, _, title in told[:-1]} == {"teacher", "pruned"}


def test_time_that_is_up_cuts_every_model():
    model, x, _ = centred(10)
    view = View(datasets.Split((x * 255).byte(), model(x).argmax(1)), torch.arange(10))
    found = measure({"teacher": model, "pruned": model}, view, norm="linf", eps=0.2, attack_names="pgd-2",
                    seed=0, progress=lambda *step: None, say=lambda text: None, seconds=0.0)
    assert all(list(each) == ["clean"] and each.unfinished == ("pgd-2",) for each in found.values())
