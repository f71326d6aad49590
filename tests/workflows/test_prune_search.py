"""The search of --max-loss around a training that is known: what each stage begins from, what judges it, and
what ends it."""
import copy
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers import small_models as small
from helpers.workflow_calls import FAST, refused, request, run_in

import pwoa_cli
from pwoa_cli.errors import InputError
from pwoa_cli.evaluation.results import Finding
from pwoa_cli.reports import schema, tables
from pwoa_cli.workflows import prune, prune_job, prune_search, search
from pwoa_cli.workflows.prune_job import prepare
from pwoa_cli.workflows.search import GAP, SHARE

BRIEF = {"epochs": "0.5", "batch_size": "32"}


def job_of(model="lenet.pt", *, max_loss=20.0, **options):
    """At an eps so small that no image is lost to the attacks."""
    return prepare(request(model, sparsity=0.0, max_loss=max_loss, n=40, **{"eps": "0.001"} | options),
                   say=lambda text: None)


def training(highest, stages):
    """A training whose student is the teacher up to a sparsity, and beyond it one that is right on no image
    but those of a class; what it was given is noted in `stages`."""
    def train(stage, told, progress):
        stages.append((stage, told))
        student = copy.deepcopy(stage.subject.model)
        if stage.plan.sparsity > highest:
            with torch.no_grad():
                student.net.linear2.weight.zero_()
                student.net.linear2.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        return student, [f"note of {stage.plan.sparsity:g}"]

    return train


def found_by(job, highest, stages, said=None):
    say = (lambda text: None) if said is None else said.append
    return prune_search.find(job, train=training(highest, stages), say=say, progress=lambda *_: None)


@pytest.mark.parametrize("highest", [0.8, 0.3])
def test_the_answer_is_within_the_gap_of_what_is_true(highest):
    stages = []
    found = found_by(job_of(), highest, stages)
    sparsity = found.job.request.sparsity
    assert sparsity <= highest and 1 - sparsity <= GAP * (1 - highest) * (1 + 1e-9)
    assert found.job.plan.sparsity == sparsity == max(
        s["sparsity"] for s in found.table["stages"] if s["accepted"])
    assert [s["sparsity"] for s in found.table["stages"]] == [stage.plan.sparsity for stage, _ in stages]
    assert [s["accepted"] for s in found.table["stages"]] == [s.plan.sparsity <= highest for s, _ in stages]


def test_each_stage_begins_as_the_last_accepted_one_and_has_a_seed_of_its_own():
    stages, job = [], job_of()
    found = found_by(job, 0.8, stages)
    accepted = 0.0
    for stage, told in stages:
        assert stage.plan.begun == accepted and told["sparsity"] == stage.plan.sparsity
        assert bool(stage.subject.model.net.linear2.weight.any())  # never as one that was refused
        assert stage.teacher.model is job.teacher.model and stage.seconds is not job.seconds
        accepted = stage.plan.sparsity if stage.plan.sparsity <= 0.8 else accepted
    assert len({stage.plan.seed for stage, _ in stages}) == len(stages)
    assert [told["stage"] for _, told in stages] == list(range(1, len(stages) + 1))
    assert [note.partition(":")[0] for note in found.notes] == [
        f"Stage {told['stage']}" for stage, told in stages if stage.plan.sparsity <= 0.8]


def test_stages_take_a_share_of_the_epochs():
    whole = prepare(request(sparsity=0.5), say=lambda text: None).plan
    staged = job_of(overrides=FAST).plan
    # 256 images, of which 40 are held out, in batches of 32
    assert whole.steps == 2 * 8 and staged.steps == round(SHARE * 2 * 6) and staged.recipe == whole.recipe


def test_what_is_held_out_is_not_trained_on_and_drawn_by_seed():
    everything = prepare(request(), say=lambda text: None).subject.dataset.train
    jobs = [job_of(seed=seed) for seed in (0, 0, 1)]
    for job in jobs:
        left = {image.numpy().tobytes() for image in job.plan.split.images}
        drawn = (255 * job.held_out[:]).round().to(torch.uint8)
        out = {image.numpy().tobytes() for image in drawn}
        assert out < {image.numpy().tobytes() for image in everything.images}
        assert len(job.held_out) == 40 and len(job.plan.split) == 216 and not left & out
        assert job.subject.dataset.train is job.plan.split
        assert max(Counter(job.held_out.labels.tolist()).values()) == 10  # stratified
    first, again, other = (job.held_out[:] for job in jobs)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_teacher_and_students_are_attacked_on_the_images_held_out_and_the_teacher_once(monkeypatch):
    seen, measure = [], prune_search.measure

    def watched(models, x, **options):
        seen.append((list(models), x, options["attack_names"]))
        return measure(models, x, **options)

    monkeypatch.setattr(prune_search, "measure", watched)
    job, stages = job_of(attacks="fgsm,pgd-2"), []
    found = found_by(job, 0.8, stages)
    assert [who for who, _, _ in seen] == [["teacher"], *[["pruned"]] * len(stages)]
    assert all(x is job.held_out and names == "fgsm,pgd-2" for _, x, names in seen)
    assert found.table["attack"] == "worst case" and found.table["held_out"] == 40


def test_a_student_that_hides_its_gradients_is_refused(monkeypatch):
    measure = prune_search.measure

    def doubted(models, x, **options):
        made = measure(models, x, **options)
        for who, evaluation in made.items():
            if who == "pruned":
                evaluation.findings = (*evaluation.findings, Finding("masked", "gradients lie.", True))
        return made

    monkeypatch.setattr(prune_search, "measure", doubted)
    with pytest.raises(InputError, match="and is refused: gradients lie."):
        found_by(job_of(), 0.8, [])


def test_too_few_images_are_told_before_any_training(tmp_path):
    stages = []
    with pytest.raises(InputError, match="even a model that loses nothing") as caught:
        found_by(job_of(max_loss=5.0), 0.9, stages)
    assert not stages and caught.value.exit_code == 2
    # 40 images, all right: Newcombe's bound is Wilson's, z^2 / (n + z^2) = 8.8%; more than 51 are not there
    assert "interval up to 8.8 points" in caught.value.message and caught.value.hint == "--max-loss 8.8"
    there = request(data=small.write_npz(tmp_path / "more.npz", n=1000), sparsity=0.0, max_loss=5.0, n=40,
                    eps="0.001")
    with pytest.raises(InputError) as caught:
        found_by(prepare(there, say=lambda text: None), 0.9, stages)
    needed = int(caught.value.hint.split()[1].rstrip(","))
    assert caught.value.hint == f"--held-out {needed}, or --max-loss 8.8"
    assert found_by(prepare(replace(there, held_out=needed), say=lambda text: None), 0.6, stages)


def test_no_sparsity_is_one_sentence_with_what_would_decide():
    with pytest.raises(InputError) as caught:
        found_by(job_of(), 0.0, [])
    message = caught.value.message
    assert message.startswith("No sparsity was found that loses at most 20 points: 6.2% loses 75.0 [")
    assert message.endswith("] points on 40 training images held out.") and "--max-loss" in caught.value.hint


@pytest.mark.parametrize(("overrides", "longer"), [
    ({"epochs": "6"}, "--epochs 30"), ({"effort": "quick"}, "--effort max"),
    ({"effort": "max"}, "--epochs 250")])
def test_longer_stages_are_longer_than_those_that_were_asked_for(overrides, longer):
    """--effort does nothing to epochs that were named."""
    job = job_of(overrides=overrides)
    assert prune_search._longer(job) == longer
    option, value = longer.removeprefix("--").split()
    assert job_of(overrides=overrides | {option: value}).plan.steps > job.plan.steps


def test_no_limit_of_100_points_is_advised(monkeypatch):
    monkeypatch.setattr(prune_search, "_judged", lambda job, teacher, student: search.Stage(
        job.plan.sparsity, 1, 1.0, 90.0, (80.0, 99.7), False))
    with pytest.raises(InputError) as caught:
        found_by(job_of(), 0.0, [])
    assert caught.value.hint == "Longer stages: --epochs 10"  # FAST has 2


def test_only_the_interval_beyond_names_the_images_that_would_decide():
    """A student that is wrong on 3 of 40 (7.5 points) where 8.9 are allowed."""
    def train(stage, told, progress):
        return wrong_on(stage.subject.model, stage.held_out[:3]), []

    def wrong_on(model, few):
        class Wrong(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = model

            def forward(self, x):
                near = (x.flatten(1)[:, None] - few.flatten(1)[None]).abs().amax(2).amin(1) <= 0.15
                logits = self.inner(x)
                return torch.where(near[:, None], -logits, logits)
        return Wrong()

    job = job_of(max_loss=8.9)
    with pytest.raises(InputError) as caught:
        prune_search.find(job, train=train, say=lambda text: None, progress=lambda *_: None)
    points, high = 7.5, float(caught.value.message.partition(", ")[2].partition("]")[0])
    needed = int(caught.value.message.partition("about ")[2].partition(" images")[0].replace(",", ""))
    assert "only its interval is beyond" in caught.value.message
    assert needed == pytest.approx(40 * ((high - points) / 1.4) ** 2, rel=0.02)


def test_what_the_structure_does_not_allow_is_no_stage_and_ends_nothing(monkeypatch):
    at_sparsity = prune_search.at_sparsity

    def bounded(job, sparsity):
        if sparsity > 0.75:
            raise InputError("cannot be reached.")
        return at_sparsity(job, sparsity)

    monkeypatch.setattr(prune_search, "at_sparsity", bounded)
    said = []
    found = found_by(job_of(), 1.0, [], said)
    assert all(s["accepted"] for s in found.table["stages"]) and found.job.request.sparsity <= 0.75
    assert min(found.table["unreachable"]) > 0.75 and "82% is left out: cannot be reached." in said


def test_a_structure_that_does_not_allow_a_half_begins_with_less(monkeypatch):
    check = prune_job._check_reachable

    def bounded(weights, groups, macs, asked, recipe):
        check(weights, groups, macs, asked, recipe)
        if asked.sparsity > 0.3:
            raise InputError("cannot be reached.")

    monkeypatch.setattr(prune_job, "_check_reachable", bounded)
    job, said = job_of(), []
    assert job.plan.sparsity == 0.25
    found = found_by(job, 1.0, [], said)
    assert said[0] == "50% is left out: cannot be reached." and 0.25 <= found.job.request.sparsity <= 0.3


# --- the whole of it ---------------------------------------------------------------

@pytest.mark.parametrize(("model", "structure", "overrides"), [
    ("lenet.pt", "unstructured", {}), ("resnet.pt", "filter", {}), ("resnet.pt", "column", {"regrow": "0.2"}),
    ("resnet.pt", "unstructured", {"start": "obs", "allocation": "sensitivity", "ema": "0.9"})])
def test_a_run_ends_in_a_file_of_the_sparsity_that_was_accepted(tmp_path, monkeypatch, model, structure,
                                                                overrides):
    monkeypatch.setattr(search, "STAGES", 3)
    made, said = run_in(tmp_path / "run", model, sparsity=0.0, max_loss=60.0, structure=structure,
                        overrides=BRIEF | overrides)
    way = made["search"]
    accepted = [s for s in way["stages"] if s["accepted"]]
    assert made["sparsity"]["target"] == max(s["sparsity"] for s in accepted)
    assert all(s["accepted"] == (s["ci95"][1] <= 60 and not s["why"]) for s in way["stages"])
    assert abs(made["sparsity"]["achieved"] - made["sparsity"]["target"]) < 0.02
    state = pwoa_cli.load_state_dict(tmp_path / "run/model.safetensors")
    nonzero = sum(int(state[layer["name"]].count_nonzero()) for layer in made["sparsity"]["layers"])
    assert nonzero == made["sparsity"]["nonzero"]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {line["stage"]: line["sparsity"] for line in lines} == {
        count: s["sparsity"] for count, s in enumerate(way["stages"], 1)}
    assert made["seconds"].keys() >= {"sparsify", "finetune", "search", "save", "evaluate"}
    assert schema.validate(made) == made and any("images held out only told" in n for n in made["notes"])
    assert "## The way there" in tables.markdown(made)
    assert f"stage {len(way['stages'])}: " in said


def test_a_pruned_file_goes_on_from_its_zeros(tmp_path):
    run_in(tmp_path / "one", sparsity=0.5)
    stages = []
    found = found_by(job_of(str(tmp_path / "one/model.safetensors")), 0.8, stages)
    assert stages[0][0].plan.sparsity == 0.75 and 0.75 <= found.job.request.sparsity <= 0.8


def test_what_a_search_refuses_before_any_work(tmp_path):
    assert "method = 'admm' chooses its weights anew" in refused(sparsity=0.0, max_loss=1.0, recipe="paper")
    few = small.write_npz(tmp_path / "few.npz", n=16)
    assert "is less than one for each of 4 classes" in refused(sparsity=0.0, max_loss=1.0, data=few, n=4)
    for count in (2, 52):
        assert "expected 4 (one a class) to 51 (a fifth)" in refused(sparsity=0.0, max_loss=1.0,
                                                                     held_out=count)


def test_the_estimate_is_a_range_and_leaves_no_trace():
    job = job_of()
    random = torch.random.get_rng_state()
    guess = prune.estimate(job)
    least, most = guess["search"]
    assert 3 <= least["stages"] < most["stages"] <= 18 and least["steps"] < most["steps"]
    assert 0 < least["seconds"] < most["seconds"] < 600
    assert guess["text"].startswith("search: about ") and "stages" in guess["text"]
    assert torch.equal(random, torch.random.get_rng_state())
