"""examples/benchmarks/recipes.py on a tiny network: rows, going on after a stop, the table and the picture."""
import importlib.util
import json
from pathlib import Path

import pytest
import small_models as small
import torch

spec = importlib.util.spec_from_file_location("recipes", Path(__file__).parents[1] / "examples/benchmarks/recipes.py")
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
    monkeypatch.setattr(recipes.prune, "fit", lambda job, **options: trained.append(job) or fit(job, **options))
    monkeypatch.chdir(tmp_path)

    def call(*more):
        trained.clear()
        recipes.main([str(world / "lenet.pt"), "--data", str(world / "grey.npz"), "--eps", "0.1", "--n", "20", "--held-out", "64",
                      "--attacks", "fgsm,pgd-2", "--results", "rows.jsonl", *more])
        return recipes.read(Path("rows.jsonl")), len(trained)

    yield call
    torch.set_num_threads(threads)


def test_rows_for_every_recipe_sparsity_and_seed(search):
    Path("list.txt").write_text("# a comment\n\nuniform: allocation=uniform epochs=1\n")
    rows, trained = search("--sparsity", "0.5", "0.9", "--seeds", "0", "1", "--file", "list.txt", "--", "short: epochs=0.5", "teacher")
    assert trained == 8 and len(rows) == 10
    assert [(r["label"], r["sparsity"], r["seed"]) for r in rows][:5] == [
        ("short", 0.5, 0), ("short", 0.5, 1), ("short", 0.9, 0), ("short", 0.9, 1), ("teacher", 0.0, 0)]
    assert rows[0] | {"clean": 0, "fgsm": 0, "pgd-2": 0, "worst case": 0, "seconds": 0} == {
        "model": "lenet.pt", "n": 20, "on": "held-out train", "label": "short", "recipe": "default", "structure": "unstructured",
        "fields": {"epochs": "0.5"}, "sparsity": 0.5, "seed": 0, "norm": "linf", "eps": 0.1, "clean": 0, "fgsm": 0, "pgd-2": 0, "worst case": 0, "seconds": 0}
    assert rows[-1]["label"] == "uniform" and rows[-1]["fields"] == {"allocation": "uniform", "epochs": "1"}


def test_the_same_command_goes_on_where_it_stopped(search):
    assert search("one: epochs=0.5", "two: epochs=1")[1] == 2
    before = Path("rows.jsonl").read_text()
    assert search("one: epochs=0.5", "two: epochs=1")[1] == 0 and Path("rows.jsonl").read_text() == before
    assert search("one: epochs=0.5", "--test")[1] == 1  # other images
    assert search("one: epochs=0.6")[1] == 1  # another recipe of the same name
    assert search("two: epochs=1", "--attacks", "fgsm,cw-2")[1] == 1  # an attack that the row lacks


def test_a_torn_line_is_run_again(search):
    rows, _ = search("one: epochs=0.5")
    with open("rows.jsonl", "a") as file:
        file.write(json.dumps(rows[0] | {"seed": 1})[:40])
    rows, trained = search("one: epochs=0.5", "--seeds", "0", "1")
    assert trained == 1 and [r["seed"] for r in rows] == [0, 1]


def row(label, seed, clean, robust, *, sparsity=0.9, n=200):
    return {"label": label, "sparsity": sparsity, "seed": seed, "n": n, "clean": clean, "pgd-20": robust, "seconds": 10.0}


def test_the_table_pools_seeds(capsys):
    lines = recipes.table([row("a", 0, 90.0, 50.0), row("a", 1, 80.0, 51.0), row("b", 0, 70.0, 40.0)], ["clean", "pgd-20"]).splitlines()
    assert lines[0] == "| recipe | sparsity | seeds | clean | pgd-20 | seconds |"
    low, high = recipes.wilson(340, 400)
    assert lines[2].startswith(f"| a | 90% | 2 | 85.0 [{100 * low:.1f}, {100 * high:.1f}] (80.0 to 90.0) | 50.5 [")
    low, high = recipes.wilson(140, 200)
    assert f"| b | 90% | 1 | 70.0 [{100 * low:.1f}, {100 * high:.1f}] |" in lines[3]


def test_the_front_has_who_is_not_beaten():
    points = [(80.0, 50.0), (85.0, 45.0), (79.0, 49.0), (85.0, 44.0), (90.0, 10.0)]
    assert recipes.front(points) == [(80.0, 50.0), (85.0, 45.0), (90.0, 10.0)]


def test_the_picture(search):
    search("one: epochs=0.5", "two: epochs=1", "teacher", "--sparsity", "0.5", "0.9", "--seeds", "0", "1", "--plot", "made.png")
    assert Path("made.png").read_bytes().startswith(b"\x89PNG")
    Path("made.png").unlink()
    assert search("--plot", "made.png", "--table")[1] == 0  # without recipes: what the file has
    assert Path("made.png").is_file()
