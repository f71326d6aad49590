"""How attacks are put together: who is attacked, what is kept, and that no interruption, limit or batch changes a flag."""
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from test_evaluate import batch, linear

from pwoa_cli import data, results, sample_file, unfinished
from pwoa_cli import evaluate as ev
from pwoa_cli.attacks import Attack, autoattack, bounded, parse, stages
from pwoa_cli.errors import InputError
from pwoa_cli.unfinished import Unfinished, key

LINF = {"norm": "linf", "eps": 0.06}


def right_on(n, classes=4, size=8, seed=0):
    """A network, and inputs on which it is right."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * (size - 2)**2, classes)).eval()
    x = torch.rand(n, 1, size, size)
    return model, x, model(x).detach().argmax(1)


class Breaks:
    """An attack that breaks the samples whose first pixel is below `limit` (by the linear model's closed form), and notes who came."""

    def __init__(self, limit):
        self.limit, self.seen = limit, []

    def __call__(self, model, inputs, labels, **_):
        self.seen.append(len(inputs))
        model(inputs)
        change = torch.where(inputs[:, :1, :1, :1] < self.limit, 1 - 2 * inputs, 0)  # a linear model without bias changes its answer
        return inputs + change


def centred(n=10):
    """z = (s, -s) with s the sum over x - 1/2: the mirror image of x has the other label."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 16))
        model[1].bias.copy_(torch.tensor([-8.0, 8.0]))
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    x[:, 0, 0, 0] = torch.arange(n) / n
    return model, x, model(x).detach().argmax(1)


def test_cheap_attacks_come_first_and_the_dear_ones_get_what_still_stands():
    model, x, y = centred()
    cheap, other, dear = Breaks(0.25), Breaks(0.35), Breaks(0.65)
    found = ev.evaluate(model, x, y, norm="linf", eps=1.0, attacks=[
        Attack("dear", dear, cost=100, cascade=True), Attack("cheap", cheap, cost=1), Attack("other", other, cost=2)])
    assert list(found) == ["clean", "cheap", "other", "dear", "worst case"]
    assert (cheap.seen, other.seen, dear.seen) == ([10], [10], [6])  # the dear one: 0.4 .. 0.9
    assert [found[name].accuracy for name in found] == [1, 0.7, 0.6, 0.3, 0.3]
    assert found.broken_by == ("cheap",) * 3 + ("other",) + ("dear",) * 3 + ("",) * 3
    assert found["dear"].broken.tolist() == [False] * 4 + [True] * 3 + [False] * 3
    assert found["other"].distance[:4].tolist() == pytest.approx([float((1 - 2 * x[i]).abs().max()) for i in range(4)])
    assert found["other"].distance[4:].isnan().all()


def test_aa_in_the_evaluation_is_the_pure_function():
    model, x, y = right_on(12)
    chosen = parse("aa")[0]
    found = ev.evaluate(model, x, y, attacks="aa", norm="linf", eps=0.08, seed=3)["aa"]
    generator = torch.Generator().manual_seed(ev.block_seed(3, "aa", 0))
    with ev.frozen(model):
        adv = autoattack.aa(model, x, y, eps=0.08, norm="linf", generator=generator)
    assert torch.equal(found.correct, model(adv).argmax(1) == y) and 0 < found.correct.sum() < 12
    assert [s.name for s in stages(chosen)] == list(found.parts) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert torch.equal(sum(flags.int() for flags in found.parts.values()), found.broken.int())
    assert found.broken.sum() == 12 - found.correct.sum() and found.forwards > 12 * 100


def test_passes_are_counted():
    model, x, y = right_on(30)
    found = ev.evaluate(model, x, y, attacks="fgsm,fmn-7", norm="linf", eps=1e-6)
    assert (found["clean"].forwards, found["clean"].backwards) == (30, 0)
    assert (found["fgsm"].forwards, found["fgsm"].backwards) == (60, 30)  # one step and the last check
    assert (found["fmn-7"].forwards, found["fmn-7"].backwards) == (30 * 9, 30 * 7)  # two checks: of the answer, and inside the ball


def test_a_batch_that_does_not_fit_is_halved_with_a_message_and_equal_flags():
    model, x, y = right_on(230)
    pgd = parse("pgd-5")[0]

    def needs_memory(model, inputs, labels, **options):
        if isinstance(model, bounded.Bounded) and min(model.batch_size, len(inputs)) > 30:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return pgd.run(model, inputs, labels, **options)

    said = []
    options = {"norm": "linf", "eps": 0.05, "seed": 1}
    whole = ev.evaluate(model, x, y, attacks=[pgd], **options)["pgd-5"].correct
    found = ev.evaluate(model, x, y, attacks=[replace(pgd, run=needs_memory)], say=said.append, **options)["pgd-5"].correct
    assert torch.equal(found, whole) and 0 < whole.sum() < 230
    assert said == [f"warning: out of memory in pgd-5: now {b} samples in a pass instead of {a}" for a, b in ((200, 100), (100, 50), (50, 25))]


def test_memory_that_never_suffices_and_other_errors_are_not_hidden():
    model, x, y = right_on(4)

    def never(model, inputs, labels, **_):
        raise MemoryError

    with pytest.raises(MemoryError):
        ev.evaluate(model, x, y, attacks=[Attack("never", never)], **LINF)


def test_the_batch_is_measured(monkeypatch):
    model, x, _ = right_on(4, size=32)
    assert bounded.fitting_batch(model, x, most=200) == 200
    each = 4 * (32 * 32 + 4 * 30 * 30)  # bytes that a sample needs at least: the input, and the convolution's output
    monkeypatch.setattr(bounded, "free_bytes", lambda device: 100 * each)
    assert 3 <= bounded.fitting_batch(model, x, most=200) <= 25
    monkeypatch.setattr(bounded, "free_bytes", lambda device: 0.0)
    assert bounded.fitting_batch(model, x[:1], most=200) == 1


def test_free_memory_is_a_number_of_bytes():
    assert 1e6 < bounded.free_bytes(torch.device("cpu")) < 1e14


def test_time_that_is_up_leaves_whole_blocks_and_says_what_is_missing():
    model, x, y = centred(450)

    def slow(model, inputs, labels, **_):
        if slow.block:
            model.meter.deadline = 0.0  # time is up in the second block
        model(inputs[:1])
        slow.block += 1
        return inputs

    slow.block = 0
    chosen = [Attack("quick", Breaks(0.5), cost=1), Attack("slow", slow, cost=10), Attack("later", Breaks(1.0), cost=20)]
    found = ev.evaluate(model, x, y, attacks=chosen, norm="linf", eps=1.0, seconds=600)
    assert list(found) == ["clean", "quick", "slow", "worst case"] and found.unfinished == ("slow", "later")
    assert found["quick"].n == 450 and found["slow"].n == 200 and found["worst case"].n == 450
    assert found["slow"].done.tolist() == [True] * 200 + [False] * 250
    assert found["worst case"].accuracy == found["quick"].accuracy
    nothing = ev.evaluate(model, x, y, attacks=chosen, norm="linf", eps=1.0, seconds=1e-9)
    assert list(nothing) == ["clean"] and nothing.unfinished == ("quick", "slow", "later")


def test_what_was_broken_before_time_was_up_counts_in_the_worst_case():
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
        patch.setattr("pwoa_cli.attacks.FIXED", {name: Attack(name, component(name)) for name in attack.parts})
        found = ev.evaluate(model, x, y, attacks=[attack], norm="linf", eps=0.05, keep_inputs=True)
    assert parts == ["apgd-ce", "apgd-t", "fab-t"] and list(found) == ["clean", "worst case"] and found.unfinished == ("aa",)
    known = ev.evaluate(model, x, y, attacks=[pgd], norm="linf", eps=0.05)["pgd-5"]
    assert found["worst case"].n == 30 and 0 < found["worst case"].accuracy <= known.accuracy
    broken = torch.tensor([name.startswith("aa: apgd-") for name in found.broken_by])
    assert torch.equal(broken, ~found["worst case"].correct) and torch.equal(model(found.inputs).argmax(1) != y, broken)


class Killed(BaseException):
    """As kill -9: nothing catches it."""


@pytest.mark.parametrize("keep_inputs", [False, True])
def test_what_is_finished_is_taken_over_and_flags_are_equal(tmp_path, keep_inputs):
    model, x, y = right_on(450)
    pgd, calls = parse("pgd-5-r2")[0], []
    options = {"norm": "linf", "eps": 0.05, "seed": 1, "keep_inputs": keep_inputs}
    whole = ev.evaluate(model, x, y, attacks=[pgd], **options)

    def dies(model, inputs, labels, **more):
        calls.append(len(inputs))
        if len(calls) == 3:
            raise Killed
        return pgd.run(model, inputs, labels, **more)

    kept = Unfinished(tmp_path / "eval", reuse=True)
    assert not kept.fault()
    with pytest.raises(Killed):
        ev.evaluate(model, x, y, attacks=[replace(pgd, run=dies)], unfinished=lambda sha256: kept, **options)
    assert len(list(kept.folder.iterdir())) == kept.made == 2
    again = ev.evaluate(model, x, y, attacks=[replace(pgd, run=dies)], unfinished=lambda sha256: kept, **options)
    assert len(calls) == 4 and kept.made == 3 and kept.taken == 2
    for field in ("correct", "broken", "attacked", "done"):
        assert torch.equal(getattr(again[pgd.name], field), getattr(whole[pgd.name], field))
    assert torch.equal(again[pgd.name].distance.nan_to_num(9), whole[pgd.name].distance.nan_to_num(9))
    assert (again[pgd.name].forwards, again[pgd.name].backwards) == (whole[pgd.name].forwards, whole[pgd.name].backwards)
    assert not keep_inputs or torch.equal(again.inputs, whole.inputs)


@pytest.mark.parametrize("cut", [0, 1, 100, 0.5, 0.98])
def test_a_unit_that_was_cut_short_is_made_again(tmp_path, cut):
    kept = Unfinished(tmp_path, reuse=True)
    rows = torch.arange(3)
    unit = ev.Unit(rows, torch.tensor([True, False, True]), torch.tensor([0.1, torch.nan, 0.2]), 1, 2, 30, 40, 0.5, torch.rand(2, 1, 2, 2))
    kept.put("aa.square.0", unit)
    read = kept.get("aa.square.0", rows, inputs=True)
    assert torch.equal(read.inputs, unit.inputs) and torch.equal(read.broken, unit.broken) and read.seconds == 0.5
    assert (read.outside, read.nonfinite, read.forwards, read.backwards) == (1, 2, 30, 40)
    path = next(tmp_path.glob("*.npz"))
    whole = path.read_bytes()
    path.write_bytes(whole[:cut if isinstance(cut, int) else int(cut * len(whole))])
    assert kept.get("aa.square.0", rows, inputs=True) is None


def test_units_of_other_samples_or_without_inputs_are_not_taken(tmp_path):
    kept = Unfinished(tmp_path, reuse=True)
    kept.put("fgsm.fgsm.0", ev.Unit(torch.arange(2), torch.ones(2).bool(), torch.ones(2), 0, 0, 1, 1, 0.1))
    assert kept.get("fgsm.fgsm.0", torch.arange(2), inputs=False) is not None
    assert kept.get("fgsm.fgsm.0", torch.arange(3), inputs=False) is None
    assert kept.get("fgsm.fgsm.0", torch.arange(2), inputs=True) is None
    assert kept.get("fgsm.fgsm.1", torch.arange(2), inputs=False) is None
    assert Unfinished(tmp_path, reuse=False).get("fgsm.fgsm.0", torch.arange(2), inputs=False) is None
    other = Unfinished(tmp_path, reuse=True)
    other.put("aa.square.0", ev.Unit(torch.arange(2), torch.ones(2).bool(), torch.ones(2), 0, 0, 1, 1, 0.1))
    kept.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["aa.square.0.npz"]  # another attack's work is not lost
    other.clear()
    assert not tmp_path.exists()


def test_names_of_plug_ins_do_not_share_a_file(tmp_path):
    kept = Unfinished(tmp_path / "new" / "folder", reuse=True)
    unit = ev.Unit(torch.arange(1), torch.ones(1).bool(), torch.ones(1), 0, 0, 1, 1, 0.1)
    assert [kept.put(f"{name}.{name}.0", unit) for name in ("a_b", "a b", "a/b", "../c")] == ["", "", "", ""]
    assert len(list(kept.folder.glob("*.npz"))) == 4


def test_an_evaluation_goes_on_where_nothing_can_be_kept_any_more(tmp_path):
    model, x, y = right_on(8)
    (tmp_path / "in_the_way").write_text("")
    said = []
    found = ev.evaluate(model, x, y, attacks="fgsm", say=said.append, unfinished=lambda _: Unfinished(tmp_path / "in_the_way" / "x", reuse=False), **LINF)
    assert found["fgsm"].n == 8 and len(said) == 1 and said[0].startswith("warning: fgsm.fgsm.0.") and "could not be kept" in said[0]


def test_the_key_is_of_all_that_flags_depend_on():
    one, other = linear(seed=0), linear(seed=1)
    keys = [key(one, "a", 0.1), key(one, "a", 0.2), key(one, "b", 0.1), key(other, "a", 0.1)]
    assert len(set(keys)) == 4 and keys[0] == key(linear(seed=0), "a", 0.1)


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    assert "Not a directory" in Unfinished(tmp_path / "file" / "eval", reuse=True).fault()


def test_inputs_are_the_first_attack_that_broke_a_sample():
    model, x, y = right_on(230)
    found = ev.evaluate(model, x, y, attacks="pgd-1,pgd-5,cw-5", norm="linf", eps=0.05, keep_inputs=True)
    moved = (found.inputs - x).flatten(1).abs().amax(1)
    broken = ~found["worst case"].correct
    assert torch.equal(moved > 0, broken) and float(moved.max()) <= 0.05 + 1e-6 and 0 <= found.inputs.min() and found.inputs.max() <= 1
    assert torch.equal(model(found.inputs).argmax(1) != y, broken)
    first = torch.tensor([name == "pgd-1" for name in found.broken_by])
    assert torch.equal(first, found["pgd-1"].broken) and 0 < first.sum() < broken.sum()


def test_a_minimum_norm_attack_gives_one_curve_for_every_eps():
    model = linear()
    x, y = batch(model, 60, wrong=[0])
    small, large = (ev.evaluate(model, x, y, attacks="fmn", norm="linf", eps=eps)["fmn"] for eps in (0.03, 0.06))
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
    split = data.Split((x * 255).byte(), y)
    reads = []

    class Spy(data.View):
        def __getitem__(self, rows):
            part = super().__getitem__(rows)
            reads.append(len(part))
            return part

    view = Spy(split, torch.arange(449, -1, -1))
    found = ev.evaluate(model, view, view.labels, attacks="fgsm", norm="linf", eps=0.05)
    assert max(reads) <= ev.BLOCK
    plain = ev.evaluate(model, view[:], view.labels, attacks="fgsm", norm="linf", eps=0.05)
    assert all(torch.equal(found[name].correct, plain[name].correct) for name in found)


def test_by_class():
    model, x, y = right_on(50)
    found = ev.evaluate(model, x, y, attacks="fgsm", norm="linf", eps=0.02)
    split = results.by_class(found, y)
    assert sum(score["n"] for score in split["fgsm"].values()) == 50
    for c, score in split["fgsm"].items():
        assert score["accuracy"] == float(found["fgsm"].correct[y == c].double().mean())


def test_samples_round_trip_bit_for_bit_and_a_cut_file_is_an_error(tmp_path):
    model, x, y = right_on(20)
    found = {"model": ev.evaluate(model, x, y, attacks="fgsm,cw-2", norm="l2", eps=0.3, keep_inputs=True)}
    path = tmp_path / "samples.npz"
    sample_file.save(path, found, index=torch.arange(5, 25), labels=y, inputs=True)
    read = sample_file.read(path)
    assert read["index"].tolist() == list(range(5, 25)) and np.array_equal(read["label"], y.numpy())
    for name, result in found["model"].items():
        assert np.array_equal(read[f"model/correct/{name}"], result.correct.numpy()) and read[f"model/done/{name}"].all()
        assert read[f"model/distance/{name}"].tobytes() == result.distance.numpy().tobytes()
    assert read["model/inputs"].tobytes() == found["model"].inputs.numpy().tobytes()
    assert tuple(read["model/broken_by"]) == found["model"].broken_by
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="samples.npz cannot be read as samples of an evaluation"):
            sample_file.read(path)
    np.save(tmp_path / "bare.npy", np.zeros(3))
    for other in ("bare.npy", "missing.npz"):
        with pytest.raises(InputError, match=f"{other} cannot be read"):
            sample_file.read(tmp_path / other)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_norm_of_the_evaluation(norm):
    model, x, y = right_on(8)
    short = [replace(a, run=partial(a.run, steps=5)) if a.cascade else a for a in parse("fgsm,pgd-3,cw-3,fmn-10,apgd-ce")]
    found = ev.evaluate(model, x, y, attacks=short, norm=norm, eps={"linf": 0.05, "l2": 0.4, "l1": 2.0}[norm])
    assert 0 < found["worst case"].accuracy < 1 and found["pgd-3"].outside == found["apgd-ce"].outside == 0


def test_a_model_without_gradients_is_refused_unless_only_square_is_asked():
    model, x, y = right_on(6)

    class Detached(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x).detach()

    with pytest.raises(InputError, match="no gradient") as caught:
        ev.evaluate(Detached(model), x, y, attacks="pgd-2", norm="linf", eps=0.1)
    assert "--attacks square" in caught.value.hint
    short = replace(parse("square")[0], run=partial(parse("square")[0].run, queries=20))
    found = ev.evaluate(Detached(model), x, y, attacks=[short], norm="linf", eps=0.3)
    assert found["square"].n == 6 and [finding.check for finding in found.findings if finding.unreliable] == ["no-gradient"]


def test_a_fast_copy_that_is_not_the_model_is_found(monkeypatch):
    from pwoa_cli.attacks import quick

    model, x, y = right_on(6)

    def other(net):
        copy, _, _ = right_on(1, seed=5)
        return copy

    monkeypatch.setattr(quick, "_copy", other)
    monkeypatch.setattr(quick, "_agree", lambda *_: True)
    short = replace(parse("apgd-ce")[0], run=partial(parse("apgd-ce")[0].run, steps=2))
    found = ev.evaluate(model, x, y, attacks=[short], norm="linf", eps=0.1)
    assert [finding.check for finding in found.findings if finding.unreliable] == ["other-function"]


def test_nothing_is_found_on_an_honest_model_and_the_model_keeps_its_mode():
    model, x, y = right_on(40, classes=10)
    assert ev.evaluate(model, x, y, attacks="fgsm,pgd,cw", norm="linf", eps=0.05).findings == ()
    found = ev.evaluate(model.train(), x, y, attacks="fgsm", norm="linf", eps=0.031)
    assert {finding.check for finding in found.findings} == {"training-mode", "rounded-eps"} and model.training


@pytest.mark.parametrize("norm,eps", [("l2", 0.5), ("l1", 3.0)])
def test_a_curve_is_never_above_the_accuracy(norm, eps):
    model, x, y = right_on(60)
    found = ev.evaluate(model, x, y, attacks="fmn-10", norm=norm, eps=eps)["fmn-10"]
    assert 0 < found.accuracy < 1 and dict(found.curve)[eps] == pytest.approx(found.accuracy, abs=1e-9)


def test_a_perturbation_beyond_eps_by_rounding_counts_in_the_curve_as_in_the_accuracy():
    eps, four = 3.0, torch.ones(4, dtype=torch.bool)
    line = results.result("fmn", torch.tensor([False, False, True, True]), done=four, attacked=four, seconds=0.0,
                          broken=torch.tensor([True, False, False, False]),
                          distance=torch.tensor([eps + 2.4e-7, torch.nan, 4.0, torch.nan]))  # just beyond, not clean, far, none found
    found = dict(results.curve(line, torch.tensor([True, False, True, True]), eps))
    assert found[eps] == line.accuracy == 0.5 and found[0.75 * eps] == 0.75 and found[4 * eps] == 0.25


def test_a_low_clean_accuracy_is_said():
    model, x, y = right_on(200, classes=10)
    y[::3] = (y[::3] + 1) % 10
    y[1::3] = (y[1::3] + 1) % 10
    found = ev.evaluate(model, x, y, attacks="fgsm", **LINF)
    assert [(f.check, f.unreliable) for f in found.findings] == [("low-accuracy", False)] and "33.0%" in found.findings[0].text


def test_modules_beside_a_network_of_ones_own_are_part_of_the_key(tmp_path, monkeypatch):
    (tmp_path / "made_net.py").write_text("import made_helper\n")
    (tmp_path / "made_helper.py").write_text("LEVELS = 4\n")
    (tmp_path / "not_imported.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    import made_net  # noqa: F401

    before = unfinished.of_folder(tmp_path / "made_net.py")
    (tmp_path / "not_imported.py").write_text("x = 1\n")
    assert unfinished.of_folder(tmp_path / "made_net.py") == before
    (tmp_path / "made_helper.py").write_text("LEVELS = 2\n")
    assert unfinished.of_folder(tmp_path / "made_net.py") != before


def test_units_of_other_rows_do_not_replace_each_other(tmp_path):
    """aa alone, then pgd and aa: what was kept of the first stays until its own attack is over."""
    model, x, y = right_on(60)
    options = {"norm": "linf", "eps": 0.05, "unfinished": lambda _: Unfinished(tmp_path, reuse=True)}
    short = replace(parse("apgd-ce")[0], run=partial(parse("apgd-ce")[0].run, steps=3))
    ev.evaluate(model, x, y, attacks=[short], **options)
    first = {path.name for path in tmp_path.iterdir()}
    ev.evaluate(model, x, y, attacks=[parse("fgsm")[0], short], **options)
    assert first < {path.name for path in tmp_path.iterdir()} and len(list(tmp_path.glob("apgd-ce.*"))) == 2
    over = Unfinished(tmp_path, reuse=True)
    ev.evaluate(model, x, y, attacks=[short], norm="linf", eps=0.05, unfinished=lambda _: over)
    over.clear()
    assert over.taken == 1 and [path.name.split(".")[0] for path in tmp_path.iterdir()] == ["fgsm"]


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
        patch.setattr("pwoa_cli.attacks.FIXED", {name: Attack(name, component(name)) for name in parse("aa")[0].parts})
        attack = Attack("aa", pgd.run, parts=("apgd-ce", "apgd-t", "fab-t", "square"))
        found = ev.evaluate(model, x, y, attacks=[attack], norm="linf", eps=0.05)
    assert list(found) == ["clean", "worst case"] and found["worst case"].forwards > 30 and found["worst case"].seconds > 0


def test_the_code_is_part_of_the_key(monkeypatch):
    before = unfinished.code()
    unfinished.code.cache_clear()
    assert unfinished.code() == before and len(before) == 64
    monkeypatch.setattr(unfinished, "LIBRARIES", ("torch",))
    unfinished.code.cache_clear()
    assert unfinished.code() != before
    unfinished.code.cache_clear()
