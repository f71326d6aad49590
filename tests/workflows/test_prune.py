"""Pruning from a checkpoint to a report on small networks: the file, its zeros, its seed, its time."""
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import torch
from helpers import small_models as small
from helpers.workflow_calls import FAST, refused, request, run_in
from torch import nn

import pwoa_cli
from pwoa_cli.data import datasets
from pwoa_cli.errors import PwoaError
from pwoa_cli.files import sparse
from pwoa_cli.files.hashes import file_sha256
from pwoa_cli.training import duration
from pwoa_cli.training.state import State
from pwoa_cli.workflows import prune
from pwoa_cli.workflows.prune_job import prepare


def test_end_to_end(tmp_path):
    made, said = run_in(tmp_path / "run", sparsity=0.7)
    state = pwoa_cli.load_state_dict(tmp_path / "run/model.safetensors")
    weights = {name: t for name, t in state.items() if t.ndim > 1}
    assert sum(int((t == 0).sum()) for t in weights.values()) == round(0.7 * 900) == 630  # exactly
    assert not any(t[t == 0].signbit().any() for t in weights.values())  # +0.0
    # biases are not pruned
    assert all(t.count_nonzero() == t.numel() for name, t in state.items() if t.ndim == 1)
    layers = {layer.pop("name"): layer for layer in made["sparsity"]["layers"]}
    assert layers == {name: {"shape": list(t.shape), "nonzero": int(t.count_nonzero()), "total": t.numel()}
                      for name, t in weights.items()}
    assert (made["sparsity"]["nonzero"] == 270 and made["sparsity"]["total"] == 900
            and made["sparsity"]["achieved"] == 0.7)
    assert (made["size"]["dense_bytes"] == sparse.dense_bytes(state)
            and made["macs"]["nonzero"] < made["macs"]["dense"])
    assert made["student"]["clean"]["accuracy"] > 0.6  # far above chance: it learned
    assert ("prune 900 weights in 4 layers to 70% zeros (unstructured), recipe default: 16 steps, "
            "2 epochs") in said


def test_macs_by_hand(tmp_path):
    made, _ = run_in(tmp_path / "run")
    positions = {"conv1.weight": 64, "conv2.weight": 16, "linear1.weight": 1, "linear2.weight": 1}
    for kind, field in (("dense", "total"), ("nonzero", "nonzero")):
        assert made["macs"][kind] == sum(layer[field] * positions[layer["name"]]
                                         for layer in made["sparsity"]["layers"])


@pytest.mark.parametrize("model", ["lenet.pt", "resnet.pt"])
def test_the_file_gives_the_measured_model_again_bit_for_bit(tmp_path, monkeypatch, model):
    students = []
    fit = prune.fit
    monkeypatch.setattr(prune, "fit",
                        lambda *args, **options: students.append(fit(*args, **options)) or students[0])
    run_in(tmp_path / "run", model)
    again = pwoa_cli.load(tmp_path / "run/model.safetensors")
    x = datasets.load("colour.npz" if model == "resnet.pt" else "grey.npz").test.batch(torch.arange(64))[0]
    with torch.no_grad():
        assert torch.equal(again(x), students[0](x)) and not again.training


def test_a_file_that_differs_when_it_is_read_again_is_no_success(tmp_path, monkeypatch):
    load = prune.load_model

    def changed(*args, **options):
        loaded = load(*args, **options)
        with torch.no_grad():
            loaded.model.net.linear2.bias[0] += 1e-3
        return loaded

    monkeypatch.setattr(prune, "load_model", changed)
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
    job = prepare(request(), say=lambda text: None)
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
    # the same in every layer
    assert {layer["nonzero"] / layer["total"] for layer in made["sparsity"]["layers"]} == {0.5}
    first = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert {"kl", "admm", "hsic_x", "hsic_y"} < first.keys()


def test_pruning_a_pruned_file_further_and_not_less(tmp_path):
    run_in(tmp_path / "one", sparsity=0.5)
    file = str(tmp_path / "one/model.safetensors")
    made, _ = run_in(tmp_path / "two", file, sparsity=0.8)
    assert made["sparsity"]["nonzero"] == 180
    message = refused(file, sparsity=0.4)
    assert message.endswith("is pruned already: 50% of its weights are zero, 40% were asked for.")


def test_another_teacher(tmp_path):
    teacher = small.save(small.learn(small.lenet(), seed=1), tmp_path / "teacher.pt")
    made, said = run_in(tmp_path / "run", teacher=teacher)
    assert made["model"]["teacher"] == teacher
    assert made["model"]["teacher_sha256"] == file_sha256(teacher) != made["model"]["sha256"]
    assert "it is right on 100.0% of the same training images" in said
    own, _ = run_in(tmp_path / "own")
    assert own["model"]["teacher"] == "lenet.pt"
    by_own, by_other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("own", "run"))
    assert by_own != by_other


def test_a_rate_that_is_too_high_is_lowered_and_said_in_the_report(tmp_path):
    """Even where it explodes right after the first losses are noted."""
    too_high = {"optimizer": "sgd", "lr": 20.0, "clip": 0.0, "batch_size": 32, "epochs": 12.0}
    made, said = run_in(tmp_path / "run", sparsity=0.7, overrides=FAST | too_high)
    told = [note for note in made["notes"] if "of the recipe's learning rate" in note]
    assert told and "The loss exploded by step" in told[0]
    assert said.count("the loss exploded by step") == len(told)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["lr_scale"] == 0.25 ** len(told)


def test_a_loss_that_is_not_finite_names_the_step(tmp_path):
    with pytest.raises(PwoaError, match=r"The loss is not finite by step \d+ of 16: .*loss\.") as caught:
        run_in(tmp_path / "run", overrides=FAST | {"lr": "1e9", "clip": "0", "optimizer": "sgd"})
    assert caught.value.exit_code == 4 and "lr" in caught.value.hint
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.toml", "metrics.jsonl"]


def test_negative_zeros_of_a_checkpoint_become_positive(tmp_path):
    state = torch.load("lenet.pt", weights_only=True)
    state["conv2.weight"][0] = -0.0
    torch.save(state, tmp_path / "minus.pt")
    run_in(tmp_path / "run", str(tmp_path / "minus.pt"), overrides=FAST | {"allocation": "uniform"})
    weight = sparse.load(tmp_path / "run/model.safetensors")["conv2.weight"]
    assert not weight[weight == 0].signbit().any()


@pytest.mark.parametrize(("model", "overrides", "structure"), [
    ("resnet.pt", {"start": "obs", "allocation": "sensitivity", "ema": "0.9"}, "unstructured"),
    ("resnet.pt", {"regrow": "0.3", "bn_reestimate": "2"}, "column"),
    ("resnet.pt", {"allocation": "sensitivity", "ema": "0.5", "bn_reestimate": "1", "bn_inputs": "clean"},
     "filter"),
    ("lenet.pt", {"start": "obs", "mix_ratio": "1"}, "unstructured")])
def test_options_together_end_in_a_sound_file(tmp_path, model, overrides, structure):
    made, _ = run_in(tmp_path / "run", model, sparsity=0.6, structure=structure, overrides=FAST | overrides)
    assert made["student"]["clean"]["accuracy"] > 0.4 and abs(made["sparsity"]["achieved"] - 0.6) < 0.02


def test_what_is_done_once_is_not_taken_for_steps(tmp_path, monkeypatch):
    """Against a clock: 1000 s before the first step, 20 s with it, then 2 s a step."""
    now, said = [0.0], []

    class Enough(Exception):
        pass

    def fit(job, *, note, **_):
        now[0] += 1000.0 + 20.0 + 19 * 2.0
        for step in (20, 40, 60, 2000):
            note(State(None, None, {}, None, step), {"loss": 1.0})
            now[0] += 40.0
        raise Enough

    job = prepare(request(), say=lambda text: None)
    job = replace(job, plan=replace(job.plan, steps=2000, sparsify_steps=1000, steps_per_epoch=100))
    monkeypatch.setattr(prune, "fit", fit)
    monkeypatch.setattr(prune.time, "perf_counter", lambda: now[0])
    with pytest.raises(Enough):
        prune.execute(job, tmp_path, say=said.append, progress=lambda *_: None, created=datetime(2026, 1, 2))
    weights = sum(job.subject.model.state_dict()[name].numel() for name in job.plan.weights)
    assert said == [str(duration.Estimate(1098.0 + 1960 * 2.0, 2.0, 2000,
                                          job.plan.recipe.batch_size * weights / 1e6))]
    assert said[0].startswith("training: about 84 min on this machine (2 s a step x 2,000 steps; ")


def test_the_time_is_estimated_on_copies():
    job = prepare(request(overrides=FAST | {"mix_ratio": "0.5"}), say=lambda text: None)
    weights = {name: t.clone() for name, t in job.subject.model.state_dict().items()}
    random = torch.random.get_rng_state()
    found = prune.time_to_fit(job)
    assert found.steps == job.plan.steps and 0 < found.seconds_per_step < found.seconds < 60
    assert all(torch.equal(t, weights[name]) for name, t in job.subject.model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())


# --- the zeros of the file ---------------------------------------------------------------

UNSAVED = ["config.toml", "metrics.jsonl", "state.pt"]


def spoiled(value):
    """`fit`, with this value in place of a zero of the first layer."""
    fit = prune.fit

    def spoil(job, **options):
        student = fit(job, **options)
        weight = student.get_parameter(job.plan.weights[0])
        with torch.no_grad():
            weight[tuple((weight == 0).nonzero()[0])] = value
        return student

    return spoil


@pytest.mark.parametrize(("value", "structure", "said"), [
    (-0.0, "unstructured", "has 630 zero weights, 1 of them -0.0, expected 630 of +0.0; nothing was saved"),
    (1.0, "unstructured", "has 629 zero weights, 0 of them -0.0, expected 630 of +0.0; nothing was saved"),
    (-0.0, "column", "1 of them -0.0, expected 630 of +0.0; nothing was saved")])
def test_a_student_with_wrong_zeros_is_refused_and_not_saved(tmp_path, monkeypatch, value, structure, said):
    monkeypatch.setattr(prune, "fit", spoiled(value))
    with pytest.raises(PwoaError, match=re.escape(said)) as caught:
        run_in(tmp_path / "run", sparsity=0.7, structure=structure)
    assert caught.value.exit_code == 4 and caught.value.hint
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == UNSAVED


def test_wrong_zeros_are_refused_without_asserts_too(tmp_path):
    code = """if True:
        import sys
        from pathlib import Path
        import torch
        from helpers.workflow_calls import run_in
        from pwoa_cli.errors import PwoaError
        from pwoa_cli.workflows import prune
        assert False, "python -O leaves asserts out"
        torch.set_num_threads(1)
        fit = prune.fit
        def negative(job, **options):
            student = fit(job, **options)
            for weight in map(student.get_parameter, job.plan.weights):
                weight.data[weight == 0] = -0.0
            return student
        prune.fit = negative
        try:
            run_in(Path(sys.argv[1]))
        except PwoaError as error:
            print(error.message)"""
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{tests}:{tests.parent}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-O", "-c", code, str(tmp_path / "run")], env=environment,
                          capture_output=True, text=True, check=True)
    assert "has 630 zero weights, 630 of them -0.0, expected 630 of +0.0; nothing was saved" in done.stdout
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == UNSAVED
