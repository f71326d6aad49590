"""How attacks are put together: who is attacked, what is kept; no interruption or limit changes a flag."""
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.problems import Breaks, batch, centred, linear, right_on

from pwoa_cli.attacks import FIXED, Attack, autoattack, bounded, parse, reduced, stages
from pwoa_cli.attacks.base import frozen
from pwoa_cli.data import datasets
from pwoa_cli.data.samples import View
from pwoa_cli.evaluation import evaluate as evaluation
from pwoa_cli.evaluation.evaluate import BLOCK, attack_all, evaluate, evaluating
from pwoa_cli.evaluation.results import unfinished_json
from pwoa_cli.evaluation.units import Unfinished
from pwoa_cli.machine.seeds import block_seed

LINF = {"norm": "linf", "eps": 0.06}


def test_cheap_attacks_come_first_and_the_dear_ones_get_what_still_stands():
    model, x, y = centred()
    cheap, other, dear = Breaks(0.25), Breaks(0.35), Breaks(0.65)
    found = evaluate(model, x, y, norm="linf", eps=1.0, attacks=[
        Attack("dear", dear, cost=100, cascade=True), Attack("cheap", cheap, cost=1),
        Attack("other", other, cost=2)])
    assert list(found) == ["clean", "cheap", "other", "dear", "worst case"]
    assert (cheap.seen, other.seen, dear.seen) == ([10], [10], [6])  # the dear one: 0.4 .. 0.9
    assert [found[name].accuracy for name in found] == [1, 0.7, 0.6, 0.3, 0.3]
    assert found.broken_by == ("cheap",) * 3 + ("other",) + ("dear",) * 3 + ("",) * 3
    assert found["dear"].broken.tolist() == [False] * 4 + [True] * 3 + [False] * 3
    mirrored = [float((1 - 2 * x[i]).abs().max()) for i in range(4)]
    assert found["other"].distance[:4].tolist() == pytest.approx(mirrored)
    assert found["other"].distance[4:].isnan().all()


def test_aa_in_the_evaluation_is_the_pure_function():
    model, x, y = right_on(12)
    chosen = parse("aa")[0]
    found = evaluate(model, x, y, attacks="aa", norm="linf", eps=0.08, seed=3)["aa"]
    generator = torch.Generator().manual_seed(block_seed(3, "aa", 0))
    with frozen(model):
        adv = autoattack.aa(model, x, y, eps=0.08, norm="linf", generator=generator)
    assert torch.equal(found.correct, model(adv).argmax(1) == y) and 0 < found.correct.sum() < 12
    assert [s.name for s in stages(chosen)] == list(found.parts) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert torch.equal(sum(flags.int() for flags in found.parts.values()), found.broken.int())
    assert found.broken.sum() == 12 - found.correct.sum() and found.forwards > 12 * 100


def short(name, steps=6):
    """A component with fewer steps, aa-mixed with fewer parts."""
    parts = {"parts": ("apgd-ce", "closing")} if name == "aa-mixed" else {}
    return (replace(FIXED[name], **parts) if parts
            else replace(FIXED[name], run=partial(FIXED[name].run, steps=steps)))


@pytest.mark.parametrize("name", ["apgd-ce", "fab-t", "aa-mixed"])
def test_blocks_that_share_passes_have_the_flags_that_they_have_alone(name, monkeypatch):
    monkeypatch.setattr(reduced, "multiplies_bf16", lambda device: True)
    model, x, y = right_on(430)
    options = {"attacks": ["pgd-2", short(name)], "norm": "linf", "eps": 0.06, "seed": 1}
    alone = evaluate(model, x, y, **options)
    passes = []
    model.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    monkeypatch.setattr(evaluation, "wide", lambda x: 5)
    ours = evaluate(model, x, y, **options)
    assert max(passes) > BLOCK or name == "aa-mixed"  # its copy has no hook
    for attack in ("pgd-2", name, "worst case"):
        assert torch.equal(ours[attack].correct, alone[attack].correct)
    assert 0 < ours[name].correct.sum() < ours[name].attacked.sum() and ours.broken_by == alone.broken_by
    assert list(ours[name].parts) == list(alone[name].parts) and ours[name].backwards > 0


def test_blocks_that_share_passes_go_on_from_units_of_one_and_the_other_way(tmp_path, monkeypatch):
    model, x, y = right_on(430)
    options = {"attacks": [short("apgd-ce")], "norm": "linf", "eps": 0.06, "keep_inputs": True}
    widths, founds = [1, 5, 1], []
    for width in widths:
        monkeypatch.setattr(evaluation, "wide", lambda x, width=width: width)
        kept = Unfinished(tmp_path, reuse=width == 5)
        founds.append(evaluate(model, x, y, unfinished=lambda _, kept=kept: kept, **options))
        assert (kept.taken, kept.made) == ((3, 0) if width == 5 else (0, 3))
        if width == 5:
            next(tmp_path.glob("apgd-ce.apgd-ce.1.*")).unlink()
            kept = Unfinished(tmp_path, reuse=True)
            founds.append(evaluate(model, x, y, unfinished=lambda _, kept=kept: kept, **options))
            assert (kept.taken, kept.made) == (2, 1)
    assert all(torch.equal(found["apgd-ce"].correct, founds[0]["apgd-ce"].correct) for found in founds)


def test_memory_that_runs_out_under_several_blocks_halves_their_passes(monkeypatch):
    model, x, y = right_on(430)
    options = {"attacks": [short("apgd-ce")], "norm": "linf", "eps": 0.06}
    whole, said = evaluate(model, x, y, **options)["apgd-ce"].correct, []
    monkeypatch.setattr(evaluation, "wide", lambda x: 5)

    def full(_, args):
        if len(args[0]) > 150:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")

    with evaluating(model, x, y, say=said.append, **options) as under:
        model.register_forward_pre_hook(full)
        attack_all({"": under}, end=None)
        assert torch.equal(under.evaluation()["apgd-ce"].correct, whole)
    assert said == [f"warning: out of memory in apgd-ce: now {b} samples in a pass instead of {a}"
                    for a, b in ((430, 215), (215, 108))]


def test_passes_are_counted():
    model, x, y = right_on(30)
    found = evaluate(model, x, y, attacks="fgsm,fmn-7", norm="linf", eps=1e-6)
    assert (found["clean"].forwards, found["clean"].backwards) == (30, 0)
    assert (found["fgsm"].forwards, found["fgsm"].backwards) == (60, 30)  # one step and the last check
    # two checks: of the answer, and inside the ball
    assert (found["fmn-7"].forwards, found["fmn-7"].backwards) == (30 * 9, 30 * 7)


def test_a_batch_that_does_not_fit_is_halved_with_a_message_and_equal_flags():
    model, x, y = right_on(230)
    pgd = parse("pgd-5")[0]

    def needs_memory(model, inputs, labels, **options):
        if isinstance(model, bounded.Bounded) and min(model.batch_size, len(inputs)) > 30:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return pgd.run(model, inputs, labels, **options)

    said = []
    options = {"norm": "linf", "eps": 0.05, "seed": 1}
    whole = evaluate(model, x, y, attacks=[pgd], **options)["pgd-5"].correct
    chosen = [replace(pgd, run=needs_memory)]
    found = evaluate(model, x, y, attacks=chosen, say=said.append, **options)["pgd-5"].correct
    assert torch.equal(found, whole) and 0 < whole.sum() < 230
    assert said == [f"warning: out of memory in pgd-5: now {b} samples in a pass instead of {a}"
                    for a, b in ((200, 100), (100, 50), (50, 25))]


def test_memory_that_never_suffices_and_other_errors_are_not_hidden():
    model, x, y = right_on(4)

    def never(model, inputs, labels, **_):
        raise MemoryError

    with pytest.raises(MemoryError):
        evaluate(model, x, y, attacks=[Attack("never", never)], **LINF)


def test_time_that_is_up_leaves_whole_blocks_and_says_what_is_missing():
    model, x, y = centred(450)

    def slow(model, inputs, labels, **_):
        if slow.block:
            model.meter.deadline = 0.0  # time is up in the second block
        model(inputs[:1])
        slow.block += 1
        return inputs

    slow.block = 0
    chosen = [Attack("quick", Breaks(0.5), cost=1), Attack("slow", slow, cost=10),
              Attack("later", Breaks(1.0), cost=20)]

    def within(seconds):
        with evaluating(model, x, y, attacks=chosen, norm="linf", eps=1.0) as under:
            attack_all({"": under}, end=time.monotonic() + seconds)
            return under.evaluation()

    found = within(600)
    assert list(found) == ["clean"] and found.unfinished == ("quick", "slow", "later")
    assert {name: part.n for name, part in found.partial.items()} == {"quick": 400, "slow": 200, "later": 200}
    assert found.partial["slow"].done.tolist() == [True] * 200 + [False] * 250
    nothing = within(-1)
    assert list(nothing) == ["clean"] and nothing.unfinished == ("quick", "slow", "later")
    assert nothing.partial == {} and unfinished_json(nothing, 450)["slow"] == {"n": 0, "of": 450}


def test_a_sample_that_nothing_reached_is_not_robust():
    """What was broken before time was up is kept by sample, and gives no worst case."""
    model, x, y = right_on(30)
    attack = parse("aa")[0]
    pgd, parts = parse("pgd-5")[0], []

    def component(name):
        def run(model, inputs, labels, **options):
            parts.append(name)
            if name == "fab-t":
                model.meter.deadline = 0.0
            return pgd.run(model, inputs, labels, **options)
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pwoa_cli.attacks.FIXED",
                      {name: Attack(name, component(name)) for name in attack.parts})
        found = evaluate(model, x, y, attacks=[attack], norm="linf", eps=0.05, keep_inputs=True)
    assert (parts == ["apgd-ce", "apgd-t", "fab-t"] and list(found) == ["clean"]
            and found.unfinished == ("aa",) and not found.partial)
    known = evaluate(model, x, y, attacks=[pgd], norm="linf", eps=0.05)["pgd-5"]
    broken = torch.tensor([name.startswith("aa: apgd-") for name in found.broken_by])
    assert int(broken.sum()) >= int(known.broken.sum()) > 0
    assert torch.equal(model(found.inputs).argmax(1) != y, broken)


def test_a_cut_run_says_what_it_cost():
    model, x, y = right_on(30)
    pgd = parse("pgd-5")[0]

    def component(name):
        def run(model, inputs, labels, **options):
            if name == "apgd-t":
                model.meter.deadline = 0.0
            return pgd.run(model, inputs, labels, **options)
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pwoa_cli.attacks.FIXED",
                      {name: Attack(name, component(name)) for name in parse("aa")[0].parts})
        attack = Attack("aa", pgd.run, parts=("apgd-ce", "apgd-t", "fab-t", "square"))
        found = evaluate(model, x, y, attacks=[attack], norm="linf", eps=0.05)
    assert list(found) == ["clean"] and found.seconds > 0


class Killed(BaseException):
    """As kill -9: nothing catches it."""


@pytest.mark.parametrize("keep_inputs", [False, True])
def test_what_is_finished_is_taken_over_and_flags_are_equal(tmp_path, keep_inputs):
    model, x, y = right_on(450)
    pgd, calls = parse("pgd-5-r2")[0], []
    options = {"norm": "linf", "eps": 0.05, "seed": 1, "keep_inputs": keep_inputs}
    whole = evaluate(model, x, y, attacks=[pgd], **options)

    def dies(model, inputs, labels, **more):
        calls.append(len(inputs))
        if len(calls) == 3:
            raise Killed
        return pgd.run(model, inputs, labels, **more)

    kept = Unfinished(tmp_path / "eval", reuse=True)
    assert not kept.fault()
    with pytest.raises(Killed):
        evaluate(model, x, y, attacks=[replace(pgd, run=dies)], unfinished=lambda sha256: kept, **options)
    assert len(list(kept.folder.glob("*.npz"))) == kept.made == 2
    again = evaluate(model, x, y, attacks=[replace(pgd, run=dies)], unfinished=lambda sha256: kept, **options)
    assert len(calls) == 4 and kept.made == 3 and kept.taken == 2
    ours, theirs = again[pgd.name], whole[pgd.name]
    for field in ("correct", "broken", "attacked", "done"):
        assert torch.equal(getattr(ours, field), getattr(theirs, field))
    assert torch.equal(ours.distance.nan_to_num(9), theirs.distance.nan_to_num(9))
    assert (ours.forwards, ours.backwards) == (theirs.forwards, theirs.backwards)
    assert not keep_inputs or torch.equal(again.inputs, whole.inputs)


def test_an_evaluation_goes_on_where_nothing_can_be_kept_any_more(tmp_path):
    model, x, y = right_on(8)
    (tmp_path / "in_the_way").write_text("")
    said = []
    found = evaluate(model, x, y, attacks="fgsm", say=said.append,
                     unfinished=lambda _: Unfinished(tmp_path / "in_the_way" / "x", reuse=False), **LINF)
    assert (found["fgsm"].n == 8 and len(said) == 1 and said[0].startswith("warning: fgsm.fgsm.0.")
            and "could not be kept" in said[0])


def test_inputs_are_the_first_attack_that_broke_a_sample():
    model, x, y = right_on(230)
    found = evaluate(model, x, y, attacks="pgd-1,pgd-5,cw-5", norm="linf", eps=0.05, keep_inputs=True)
    moved = (found.inputs - x).flatten(1).abs().amax(1)
    broken = ~found["worst case"].correct
    assert torch.equal(moved > 0, broken) and float(moved.max()) <= 0.05 + 1e-6
    assert found.inputs.min() >= 0 and found.inputs.max() <= 1
    assert torch.equal(model(found.inputs).argmax(1) != y, broken)
    first = torch.tensor([name == "pgd-1" for name in found.broken_by])
    assert torch.equal(first, found["pgd-1"].broken) and 0 < first.sum() < broken.sum()


def test_a_minimum_norm_attack_gives_one_curve_for_every_eps():
    model = linear()
    x, y = batch(model, 60, wrong=[0])
    small, large = (evaluate(model, x, y, attacks="fmn", norm="linf", eps=eps)["fmn"] for eps in (0.03, 0.06))
    assert torch.equal(small.distance.nan_to_num(9), large.distance.nan_to_num(9))
    weight = (model[1].weight[1 - y] - model[1].weight[y]).detach()
    for radius, accuracy in large.curve:
        corner = torch.where(weight.view_as(x) > 0, (x + radius).clamp_max(1), (x - radius).clamp_min(0))
        truth = float((model(corner).argmax(1) == y).double().mean())
        assert abs(accuracy - truth) <= 1 / 60 + 1e-9, radius  # fmn is within 0.3% of the smallest
    assert [a for _, a in large.curve] == sorted((a for _, a in large.curve), reverse=True)
    assert dict(large.curve)[0.06] == large.accuracy


def test_images_are_read_a_block_at_a_time():
    model, x, y = right_on(450)
    split = datasets.Split((x * 255).byte(), y)
    reads = []

    class Spy(View):
        def __getitem__(self, rows):
            part = super().__getitem__(rows)
            reads.append(len(part))
            return part

    view = Spy(split, torch.arange(449, -1, -1))
    found = evaluate(model, view, view.labels, attacks="fgsm", norm="linf", eps=0.05)
    assert max(reads) <= BLOCK
    plain = evaluate(model, view[:], view.labels, attacks="fgsm", norm="linf", eps=0.05)
    assert all(torch.equal(found[name].correct, plain[name].correct) for name in found)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_norm_of_the_evaluation(norm):
    model, x, y = right_on(8)
    short = [replace(a, run=partial(a.run, steps=5)) if a.cascade else a
             for a in parse("fgsm,pgd-3,cw-3,fmn-10,apgd-ce")]
    found = evaluate(model, x, y, attacks=short, norm=norm, eps={"linf": 0.05, "l2": 0.4, "l1": 2.0}[norm])
    assert 0 < found["worst case"].accuracy < 1 and found["pgd-3"].outside == found["apgd-ce"].outside == 0


class Detached(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).detach()


def test_without_gradients_the_other_attacks_run_and_the_rest_is_named():
    model, x, y = right_on(6)
    short = replace(parse("square")[0], run=partial(parse("square")[0].run, queries=20))
    found = evaluate(Detached(model), x, y, attacks=[*parse("pgd-2,cw"), short], norm="linf", eps=0.3)
    assert list(found) == ["clean", "square"] and found["square"].n == 6 and not found.unfinished
    finding, = (finding for finding in found.findings if finding.unreliable)
    assert finding.check == "no-gradient" and finding.text.endswith("; pgd-2 and cw were not run.")


def test_models_with_and_without_gradients_are_attacked_side_by_side():
    model, x, y = right_on(6)
    options = {"attacks": "fgsm,pgd-2", "norm": "linf", "eps": 0.3}
    with evaluating(model, x, y, **options) as one, evaluating(Detached(model), x, y, **options) as other:
        attack_all({"other": other, "one": one}, end=None)
        assert list(one.evaluation()) == ["clean", "fgsm", "pgd-2", "worst case"]
        assert list(other.evaluation()) == ["clean"] and not other.evaluation().unfinished


def test_a_fast_copy_that_is_not_the_model_is_found():
    model, x, y = right_on(6)
    attack, searched = parse("apgd-ce")[0], []

    def misled(model, inputs, labels, **options):
        other = bounded.Bounded(right_on(1, seed=5)[0], model.batch_size, model.meter)
        other.model.register_forward_hook(lambda *_: searched.append(1))
        model.copies["quick", model.batch_size] = other
        return attack.run(model, inputs, labels, steps=2, **options)

    found = evaluate(model, x, y, attacks=[replace(attack, run=misled)], norm="linf", eps=0.1)
    assert searched
    assert [finding.check for finding in found.findings if finding.unreliable] == ["other-function"]


def test_nothing_is_found_on_an_honest_model_and_the_model_keeps_its_mode():
    model, x, y = right_on(40, classes=10)
    assert evaluate(model, x, y, attacks="fgsm,pgd,cw", norm="linf", eps=0.05).findings == ()
    found = evaluate(model.train(), x, y, attacks="fgsm", norm="linf", eps=0.031)
    assert ({finding.check for finding in found.findings} == {"training-mode", "rounded-eps"}
            and model.training)


def test_a_low_clean_accuracy_is_said():
    model, x, y = right_on(200, classes=10)
    y[::3] = (y[::3] + 1) % 10
    y[1::3] = (y[1::3] + 1) % 10
    found = evaluate(model, x, y, attacks="fgsm", **LINF)
    assert [(f.check, f.unreliable) for f in found.findings] == [("low-accuracy", False)]
    assert "33.0%" in found.findings[0].text
