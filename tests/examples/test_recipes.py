"""examples/benchmarks/recipes.py on a tiny network: rows, going on after a stop, table and picture."""
import hashlib
import importlib.util
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from helpers import small_models as small

from pwoa_cli.data import datasets
from pwoa_cli.errors import InputError
from pwoa_cli.files.hashes import file_sha256
from pwoa_cli.training.kinds import Kinds
from pwoa_cli.training.recipe import read_recipe

SCRIPT = Path(__file__).parents[2] / "examples/benchmarks/recipes.py"
spec = importlib.util.spec_from_file_location("recipes", SCRIPT)
recipes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipes)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    small.save(small.learn(small.lenet()), folder / "lenet.pt")
    small.write_npz(folder / "grey.npz")
    return folder


@pytest.fixture
def search(world, tmp_path, monkeypatch):
    """Run the command on LeNet with rows in a new folder: (rows, trainings done by this call)."""
    threads, trained = torch.get_num_threads(), []
    fit = recipes.prune.fit
    monkeypatch.setattr(recipes.prune, "fit",
                        lambda job, **options: trained.append(job) or fit(job, **options))
    monkeypatch.chdir(tmp_path)

    def call(*more):
        trained.clear()
        recipes.main([str(world / "lenet.pt"), "--data", str(world / "grey.npz"), "--eps", "0.1", "--n", "20",
                      "--held-out", "64",
                      "--attacks", "fgsm,pgd-2", "--results", "rows.jsonl", *more])
        return recipes.read(Path("rows.jsonl")), len(trained)

    yield call
    torch.set_num_threads(threads)


def test_rows_for_every_recipe_sparsity_and_seed(search, world):
    Path("list.txt").write_text("# a comment\n\nuniform: allocation=uniform epochs=1\n")
    rows, trained = search("--sparsity", "0.5", "0.9", "--seeds", "0", "1", "--file", "list.txt", "--",
                           "short: epochs=0.5", "teacher")
    assert trained == 8 and len(rows) == 10
    assert [(r["label"], r["sparsity"], r["seed"]) for r in rows][:5] == [
        ("short", 0.5, 0), ("short", 0.5, 1), ("short", 0.9, 0), ("short", 0.9, 1), ("teacher", 0.0, 0)]
    recipe = read_recipe("default", data="grey", kinds=Kinds("plain", "photographs"),
                         overrides={"epochs": "0.5"})
    found = {"clean": 0, "fgsm": 0, "pgd-2": 0, "worst case": 0, "kl": 0, "seconds": 0, "hsic_share": 0}
    assert rows[0] | found == found | {
        "model": "lenet.pt", "sha256": file_sha256(world / "lenet.pt")[:12], "data": "grey", "n": 20,
        "on": "held-out train", "held_out": 64, "label": "short", "recipe": "default",
        "structure": "unstructured",
        "fields": {"epochs": "0.5"}, "sparsity": 0.5, "seed": 0, "norm": "linf", "eps": 0.1, "clean": 0,
        "fgsm": 0, "pgd-2": 0,
        "recipe_sha256": hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:12],
        "worst case": 0, "kl": 0, "seconds": 0}
    assert all(r["kl"] > 0 for r in rows if r["sparsity"]) and rows[4]["kl"] == 0  # the teacher from itself
    assert rows[5]["label"] == "teacher" and rows[5]["recipe_sha256"] == ""
    assert rows[-1]["label"] == "uniform" and rows[-1]["fields"] == {"allocation": "uniform", "epochs": "1"}


def test_the_same_command_goes_on_where_it_stopped(search):
    assert search("one: epochs=0.5", "two: epochs=1")[1] == 2
    before = Path("rows.jsonl").read_text()
    assert search("one: epochs=0.5", "two: epochs=1")[1] == 0 and Path("rows.jsonl").read_text() == before
    assert search("one: epochs=0.5", "--test")[1] == 1  # other images
    assert search("one: epochs=0.6")[1] == 1  # another recipe of the same name
    assert search("two: epochs=1", "--attacks", "fgsm,cw-2")[1] == 1  # an attack that the row lacks
    assert search("two: epochs=1", "--attacks", "fgsm,pgd-2,cw-2")[1] == 0  # two rows have them together
    assert search("one: epochs=0.5", "--eps", "0.05")[1] == 1
    assert search("one: epochs=0.5", "--norm", "l2", "--eps", "0.1")[1] == 1
    assert search("one: epochs=0.5", "--held-out", "60")[1] == 1


def test_a_row_of_another_model_data_or_default_does_not_count(search, world, monkeypatch, tmp_path):
    assert search("one: epochs=0.5")[1] == 1
    # the same bytes elsewhere are the same model
    (tmp_path / "lenet.pt").write_bytes((world / "lenet.pt").read_bytes())
    model = [str(tmp_path / "lenet.pt"), "--eps", "0.1", "--n", "20", "--held-out", "64", "--attacks",
             "fgsm,pgd-2",
             "--results", "rows.jsonl", "one: epochs=0.5"]
    recipes.main([*model, "--data", str(world / "grey.npz")])
    assert len(recipes.read(Path("rows.jsonl"))) == 1
    small.write_npz(tmp_path / "other.npz")
    recipes.main([*model, "--data", str(tmp_path / "other.npz")])
    assert len(recipes.read(Path("rows.jsonl"))) == 2
    state = torch.load(tmp_path / "lenet.pt", weights_only=True)
    state["linear2.bias"] += 1e-3
    torch.save(state, tmp_path / "lenet.pt")
    recipes.main([*model, "--data", str(world / "grey.npz")])
    assert len(recipes.read(Path("rows.jsonl"))) == 3
    assert search("one: epochs=0.5")[1] == 0
    monkeypatch.setattr(recipes, "read_recipe",
                        lambda *a, **o: replace(read_recipe(*a, **o), temperature=4.5))
    assert search("one: epochs=0.5")[1] == 1  # the shipped recipe has changed since


@pytest.mark.parametrize(("spec", "words"), [
    ("bad: epochs", "'bad: epochs' is not LABEL or LABEL: FIELD=VALUE"), (": epochs=1", "is not LABEL"),
    ("bad: =1", "is not LABEL"),
    ("bad: epoch=1", "no recipe field 'epoch'"), ("bad: recipe=papr", "neither shipped nor a file")])
def test_a_wrong_recipe_is_an_error_of_the_command(search, capsys, spec, words):
    with pytest.raises(SystemExit) as stopped:
        search(spec)
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_held_out_images_are_a_fair_sample_of_a_sorted_set():
    labels = torch.arange(4).repeat_interleave(25)
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    found = datasets.Dataset("sorted", datasets.Split(images, labels), datasets.Split(images[:4], labels[:4]),
                             4, (1, 1, 1), "none", None, "here")
    made = recipes.held_out(found, 20)
    assert (torch.bincount(made.test.labels).tolist() == [5] * 4
            and torch.bincount(made.train.labels).tolist() == [20] * 4)
    both = torch.cat([made.train.images, made.test.images]).flatten()
    assert torch.equal(both.sort().values, images.flatten())
    for split in (made.train, made.test):
        assert torch.equal(split.images.flatten() // 25, split.labels)
    assert torch.equal(recipes.held_out(found, 20).test.images, made.test.images)
    with pytest.raises(InputError, match="some of which must be left"):
        recipes.held_out(found, 100)


def test_a_torn_line_is_run_again(search):
    rows, _ = search("one: epochs=0.5")
    with open("rows.jsonl", "a") as file:
        file.write(json.dumps(rows[0] | {"seed": 1})[:40])
    rows, trained = search("one: epochs=0.5", "--seeds", "0", "1")
    assert trained == 1 and [r["seed"] for r in rows] == [0, 1]


def row(label, seed, clean, robust, *, sparsity=0.9, n=200):
    return {"label": label, "sparsity": sparsity, "seed": seed, "n": n, "clean": clean, "pgd-20": robust,
            "seconds": 10.0}


def test_the_table_pools_seeds(capsys):
    lines = recipes.table([row("a", 0, 90.0, 50.0), row("a", 1, 80.0, 51.0), row("b", 0, 70.0, 40.0)],
                          ["clean", "pgd-20"]).splitlines()
    assert lines[0] == "| recipe | sparsity | seeds | clean | pgd-20 | kl | seconds |"
    low, high = recipes.wilson(340, 400)
    assert lines[2].startswith(f"| a | 90% | 2 | 85.0 [{100 * low:.1f}, {100 * high:.1f}] (80.0 to 90.0) | "
                               "50.5 [")
    low, high = recipes.wilson(140, 200)
    assert (f"| b | 90% | 1 | 70.0 [{100 * low:.1f}, {100 * high:.1f}] |" in lines[3]
            and lines[3].endswith("| - | 10 |"))
    pooled = recipes.table([row("a", 0, 90.0, 50.0) | {"kl": 0.31}, row("a", 1, 80.0, 51.0) | {"kl": 0.3}],
                           ["clean"])
    assert pooled.endswith("| 0.305 | 10 |")


def test_kl_is_that_of_the_students_answers_from_the_teachers():
    torch.manual_seed(0)  # a divergence near 0 would be rounding
    x = torch.rand(6, 1, 8, 8)
    student, teacher = small.lenet().eval(), small.lenet().eval()
    with torch.no_grad():
        student.linear2.weight.mul_(20)
        teacher.linear2.weight.mul_(30)  # answers far enough apart for float32
        t, s = teacher(x).double().softmax(1), student(x).double().softmax(1)
    expected = float((t * (t / s).log()).sum(1).mean())
    assert recipes.divergence(student, teacher, x, batch=4) == pytest.approx(expected, rel=1e-5)


def test_the_table_pools_only_what_is_the_same():
    rows = [row("a", 0, 90.0, 50.0), row("a", 0, 91.0, 60.0) | {"pgd-40": 20.0}, row("a", 1, 93.0, 70.0),
            row("a", 0, 10.0, 10.0) | {"eps": 0.3}, row("a", 0, 20.0, 20.0, n=100),
            row("a", 0, 30.0, 30.0, sparsity=0.5)]
    # the newest of seed 0, without that attack
    rows.append({k: v for k, v in row("a", 0, 92.0, 0.0).items() if k != "pgd-20"})
    lines = recipes.table(rows, ["clean", "pgd-20"]).splitlines()[2:]
    assert len(lines) == 4
    pooled, of_eps, of_n, half = lines
    assert pooled.startswith("| a (eps None, n 200) | 90% | 2 | 92.5 [") and "(92.0 to 93.0)" in pooled
    assert "| 65.0 [" in pooled and "(60.0 to 70.0)" in pooled
    assert (of_eps.startswith("| a (eps 0.3, n 200) | 90% | 1 | 10.0")
            and of_n.startswith("| a (eps None, n 100) | 90% | 1 | 20.0"))
    assert half.startswith("| a (eps None, n 200) | 50% | 1 | 30.0")


def test_the_front_has_who_is_not_beaten():
    points = [(80.0, 50.0), (85.0, 45.0), (79.0, 49.0), (85.0, 44.0), (90.0, 10.0)]
    assert recipes.front(points) == [(80.0, 50.0), (85.0, 45.0), (90.0, 10.0)]


def test_the_picture(search):
    search("one: epochs=0.5", "two: epochs=1", "teacher", "--sparsity", "0.5", "0.9", "--seeds", "0", "1",
           "--plot", "made.png")
    assert Path("made.png").read_bytes().startswith(b"\x89PNG")
    Path("made.png").unlink()
    assert search("--plot", "made.png", "--table")[1] == 0  # without recipes: what the file has
    assert Path("made.png").is_file()
