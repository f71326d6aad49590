"""The command line as a program sees it: help whose examples run, streams, files, the contract of --json."""
import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import small_models as small
import torch
from cli_world import BUDGET, PACKAGE, PRUNE, RUN_FILES, TINY, here, pwoa, world  # noqa: F401 (fixtures)

import pwoa_cli
from pwoa_cli import cli, run, show


# --- help --------------------------------------------------------------------------------------------------------------

def test_help_imports_nothing_heavy():
    code = """if True:
        import sys
        sys.argv = ["pwoa", "prune", "--help"]
        from pwoa_cli import cli
        try:
            cli.main()
        except SystemExit:
            pass
        print(sorted({"torch", "torchvision", "timm", "numpy"} & set(sys.modules)), file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert done.stderr.strip() == "[]" and done.stdout.startswith("Usage: ")


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("command", [[], ["prune"], ["eval"]])
def test_help_holds_in_a_narrow_terminal(pwoa, monkeypatch, command, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, err = pwoa(*command, "--help")
    assert code == 0 and not err
    assert max(map(len, out.splitlines())) <= columns
    assert not re.search(r"\w\.\.\.$|<str>|\{", out, re.M)  # nothing cut, nothing of the parser's inside


def test_help_groups_options_and_shows_defaults(pwoa):
    _, out, _ = pwoa("prune", "--help")
    assert re.findall(r"^(\w.*):$", out, re.M) == ["Arguments", "Pruning", "Model", "Data and attacks", "Run"]
    words = " ".join(out.split())
    for default in ("unstructured", "default", "fgsm,pgd-10,pgd-20,cw", "1000", "0", "auto"):
        assert f"[default: {default}]" in words


def test_the_same_word_in_every_command(pwoa):
    model = "--arch --num-classes --normalize --mean --std --entry --keep --trust-pickle --data --json --quiet".split()
    every = [*model, *"--norm --eps --attacks --n --batch-size --seed --device --out --dry-run".split()]
    for command, flags in {"prune": [*every, "--teacher", "--recipe", "--sparsity", "--epochs"], "eval": [*every, "--compare"], "info": model}.items():
        _, out, _ = pwoa(command, "--help")
        assert set(flags) <= set(re.findall(r"^  (?:-h, )?(--[\w-]+)", out, re.M))


def examples(command):
    """Lines of the help's epilog; None: of `pwoa --help`."""
    commands = {c.name or c.callback.__name__: c for c in cli.app.registered_commands} | {None: cli.app.registered_callback}
    return re.findall(r"^  (pwoa .*)$", commands[command].epilog, re.M)


@pytest.mark.parametrize("line", [line for command in (None, "prune", "eval", "info") for line in examples(command)])
def test_every_example_of_the_help_runs(here, pwoa, line):
    words = shlex.split(line)[1:]
    if words[-1] != "--help":
        words += [*(TINY if words[0] != "info" else []), *(BUDGET[:4] if words[0] == "prune" else [])]
    code, out, err = pwoa(*words)
    assert code == 0, err
    assert json.loads(out) if "--json" in words else out.startswith(("# ", "Usage"))


def test_help_shows_the_examples_that_the_test_above_runs(pwoa):
    for command in (None, "prune", "eval", "info"):
        _, out, _ = pwoa(*([command] if command else []), "--help")
        assert len(examples(command)) in (3, 4) and examples(command) == re.findall(r"^    (pwoa .*)$", out, re.M)


def test_version_and_no_command(pwoa):
    assert pwoa("--version") == (0, f"pwoa {pwoa_cli.__version__}\n", "")
    code, out, err = pwoa()
    assert code == 2 and not out and err.startswith("Usage: pwoa")


# --- the house ---------------------------------------------------------------------------------------------------------

ROWS = [  # lowest first; the package itself (pwoa_cli.load) is ""
    ["errors"],
    ["run", "options", "vary", "config", "cpu", "average", "rice", "schedule", "structure", "hsic", "distill", "layers", "data_formats",
     "attacks.base", "attacks.bounded", "intervals", "families.base", "normalisation", "hub", "file_kinds", "rehearsal", "fold", "signatures"],
    ["families.small", "families.preact", "families.vgg", "families.resnet", "pickles",
     "threat", "unfinished"],
    ["families.wide", "families.deepmind"],
    ["admm", "obs", "objective", "allocation", "sparse_file", "data", "report", "attacks.gradient", "attacks.plugins", "families"], ["show"],
    ["models", "sensitivity", "attacks.minimum_norm"], ["attacks.quick"], ["attacks.square"], ["attacks.autoattack"],
    ["attacks", "checkpoint_file", "console", "training", "architecture", "checks"], ["results"],
    ["checkpoint", "estimate", "evaluate", "sample_file", "signatures_build"],
    ["", "readings"],
    ["subject", "info"],
    ["assess"],
    ["prune"],
    ["cli"],
]


def imported(path):
    """Modules of the package that a file imports anywhere, named from the package's root."""
    inside = [*path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "pwoa_cli"):
            base = inside[:len(inside) - node.level + 1] if node.level else []
            base = base + [part for part in (node.module or "").split(".") if part and part != "pwoa_cli"]
            for alias in node.names:
                full = ".".join([*base, alias.name])
                yield full if is_module(full) else ".".join(base)
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names if alias.name.split(".")[0] == "pwoa_cli")


def is_module(name):
    path = PACKAGE / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_imports_point_downwards_only():
    row_of = {name: row for row, names in enumerate(ROWS) for name in names}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")
        assert name in row_of, f"{name} has no row yet: put it into ROWS"
        assert not [other for other in imported(path) if row_of[other] >= row_of[name]], f"{name} imports upwards"


def test_only_the_command_line_prints():
    for path in PACKAGE.rglob("*.py"):
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert path.name in ("cli.py", "console.py") or not [f for f in calls if getattr(f, "id", "") == "print"], path


# --- a run -------------------------------------------------------------------------------------------------------------

def test_prune_writes_a_run_and_says_where_and_what_next(here, pwoa):
    code, out, err = pwoa(*PRUNE, "--out", "runs/one")
    assert code == 0, err
    assert sorted(p.name for p in Path("runs/one").iterdir()) == RUN_FILES
    made = json.loads(Path("runs/one/report.json").read_text())
    assert show.markdown(made) == Path("runs/one/report.md").read_text() == out
    assert err.splitlines()[-2:] == ["wrote runs/one", "next: pwoa eval runs/one --attacks pgd,cw,aa"]
    assert "Traceback" not in err and "\x1b" not in err + out
    said = err.split("prune 900 weights")[0]
    for inferred in ("lenet5, 4 classes", "1-4-8 3x3, 32-16-4", "tiny from tiny.npz", "normalisation: none in the file"):
        assert inferred in said


def test_report_json_keeps_the_contract(here, pwoa):
    folder = run.newest()
    made = json.loads((folder / "report.json").read_text())
    assert made["schema_version"] == 1
    assert {"source", "sha256", "arch", "num_classes"} <= made["model"].keys() and made["model"]["source"] == "model.pt"
    assert made["threat"] == {"norm": "linf", "eps": 0.5}
    sparsity = made["sparsity"]
    assert sparsity["target"] == 0.9 and sparsity["total"] == 900 and sparsity["nonzero"] == 90
    assert sparsity["achieved"] == pytest.approx(0.9) and sum(layer["nonzero"] for layer in sparsity["layers"]) == 90
    assert all(layer.keys() == {"name", "shape", "nonzero", "total"} for layer in sparsity["layers"])
    assert made["size"]["file_bytes"] == (folder / "model.safetensors").stat().st_size
    for side in ("teacher", "student"):
        assert made[side].keys() == {"clean", "fgsm"}
        for score in made[side].values():
            assert score.keys() >= {"accuracy", "n", "ci95"} and 0 <= score["accuracy"] <= 1 and score["n"] == 20
    assert made["seconds"].keys() == {"load", "sparsify", "finetune", "save", "evaluate"}
    assert {"torch", "pwoa", "seed"} <= made["environment"].keys()
    assert str(Path.home()) not in json.dumps(made)


def test_config_says_everything_that_was_resolved(here):
    config = tomllib.loads((run.newest() / "config.toml").read_text())
    assert config["model"] == "model.pt" and config["arch"] == "lenet5" and config["num_classes"] == 4 and config["seed"] == 0
    assert config["recipe"]["batch_size"] == 16 and config["recipe"]["epochs"] == 0.1 and config["recipe"]["allocation"] == "lamp"
    assert config["environment"]["torch"] == torch.__version__ and config["environment"]["pwoa"] and config["steps"] == 2
    assert config["hidden_layers"] == ["relu1", "relu2", "relu3"] and len(config["sha256"]) == 64


def test_metrics_have_a_line_for_the_end_of_each_phase(here):
    lines = run.read_metrics(run.newest() / "metrics.jsonl")
    assert [(line["step"], line["phase"]) for line in lines] == [(1, "sparsify"), (2, "finetune")]
    assert all(line["loss"] > 0 and "kl" in line for line in lines)


@pytest.mark.parametrize("args", [
    ["eval", "model.pt", *TINY, "--attacks", "fgsm"], ["eval", "--n", "20", "--attacks", "fgsm"], PRUNE, [*PRUNE, "--dry-run"],
    ["eval", "model.pt", *TINY, "--dry-run"]])
def test_json_is_the_only_thing_on_stdout(here, pwoa, args):
    code, out, err = pwoa(*args, "--json")
    assert code == 0 and out.count("\n") == 1 and isinstance(json.loads(out), dict), err


NEAR_CHANCE = "warning: unreliable: pruned: clean accuracy 30.0% is near chance (25.0%).\n"  # of this little pruned network: warnings stay


def test_quiet_leaves_the_result_alone(here, pwoa):
    for args in (PRUNE, ["eval", "--n", "20", "--attacks", "fgsm"]):
        code, out, err = pwoa(*args, "--quiet")
        assert code == 0 and out.startswith("# ") and not err.replace(NEAR_CHANCE, "")


def test_eval_of_one_model(here, pwoa):
    code, out, _ = pwoa("eval", "model.pt", *TINY, "--attacks", "pgd-2", "--json", "--out", "measured")
    made = json.loads(out)
    assert code == 0 and made["results"].keys() == {"clean", "pgd-2"} and "teacher" not in made
    assert made["results"]["clean"] == {"accuracy": 1.0, "n": 20, "ci95": pytest.approx([0.839, 1.0], abs=1e-3)}
    assert made["results"]["pgd-2"]["attacked"] == 20 and made["results"]["pgd-2"]["backwards"] > 0
    assert json.loads(Path("measured/report.json").read_text()) == made
    assert Path("measured/report.md").read_text().startswith("# model.pt under attack")
    assert made["environment"]["device"] in ("cpu", "cuda", "mps")  # resolved, not "auto"


@pytest.mark.parametrize("model", ["newest", "folder", "file"])
def test_eval_of_a_run_beside_its_teacher(here, pwoa, model):
    folder = str(run.newest())
    named = {"newest": [], "folder": [folder], "file": [f"{folder}/model.safetensors", "--teacher", "model.pt", *TINY]}[model]
    code, out, err = pwoa("eval", *named, "--n", "20", "--attacks", "fgsm", "--json")
    assert code == 0, err
    made, before = json.loads(out), json.loads(Path(folder, "report.json").read_text())
    assert all(made[key] == before[key] for key in ("teacher", "student", "drop"))
    names = ("compared", "model") if model == "file" else ("teacher", "pruned")  # only of a run is it known who taught whom
    assert made["seconds"].keys() == {f"{who} {attack}" for who in names for attack in ("clean", "fgsm")}


def test_eval_headline_names_the_run(here, pwoa):
    _, out, _ = pwoa("eval", "--n", "20", "--attacks", "fgsm")
    assert out.startswith(f"# {run.newest().name} under attack")


def test_eval_results_depend_on_no_batch_size(here, pwoa):
    runs = [pwoa("eval", "model.pt", *TINY, "--attacks", "cw-3", "--batch-size", size, "--json")[1] for size in (7, 200)]
    assert json.loads(runs[0])["results"] == json.loads(runs[1])["results"]


def test_eval_where_the_teacher_has_gone_or_changed(here, pwoa):
    small.save(small.learn(small.lenet(), seed=1), "model.pt")
    code, out, err = pwoa("eval", "--n", "20", "--attacks", "fgsm")
    assert code == 2 and not out and "SHA-256 differs" in err and "--compare FILE" in err
    Path("model.pt").rename("away.pt")
    code, out, err = pwoa("eval", "--n", "20", "--attacks", "fgsm", "--json")
    assert code == 0 and "results" in json.loads(out) and "model.pt is not there any more" in err
    code, out, err = pwoa("eval", "--n", "20", "--attacks", "fgsm", "--json", "--teacher", "away.pt")
    assert code == 0 and "teacher" in json.loads(out)


def test_dry_run_leaves_nothing(here, pwoa):
    before = sorted(here.rglob("*"))
    for out in ([], ["--out", "new/folder"]):
        code, text, _ = pwoa(*PRUNE, "--dry-run", *out)
        assert code == 0 and text.startswith("Everything checked; a run would write ")
        assert re.search(r"^training: about \d+ s on this machine \([\d.]+ ms a step x 2 steps; [\d.]+ m?s per million weights and image\)$", text, re.M)
        planned = json.loads(pwoa(*PRUNE, "--dry-run", "--json", *out)[1])
        assert planned.keys() == {"dry_run", "out", "steps", "seconds", "seconds_per_step", "seconds_per_million_weights_and_image"}
        assert 0 < planned["seconds_per_step"] < 60
        assert pwoa("eval", "--n", "20", "--dry-run", *out)[0] == 0
    assert sorted(here.rglob("*")) == before


def test_effort_and_partial_access(here, pwoa):
    def steps(*more):
        return json.loads(pwoa("prune", "model.pt", "--sparsity", "0.9", *TINY, "--batch-size", "16", "--dry-run", "--json", *more)[1])["steps"]

    assert [steps("--effort", e) for e in ("quick", "default", "max")] == [32, 160, 800] and steps() == 160  # 10 epochs of 16 steps
    assert steps("--effort", "max", "--epochs", "1") == steps("--epochs", "1") == 16
    code, out, err = pwoa(*PRUNE, "--mix-ratio", "0.5")
    assert code == 0 and "50% of the training batches" in out and "training: about " in err
    code, _, err = pwoa(*PRUNE, "--effort", "huge")
    assert code == 2 and "effort = 'huge', expected one of quick, default, max" in err


def test_out_may_be_new_or_empty(here, pwoa):
    Path("empty").mkdir()
    for out in ("empty", "new/deep"):
        assert pwoa(*PRUNE, "--quiet", "--out", out)[0] == 0
        assert sorted(p.name for p in Path(out).iterdir()) == RUN_FILES
    code, _, err = pwoa(*PRUNE, "--out", "empty")
    assert code == 2 and "empty exists and is not empty; nothing in it was touched" in err
    assert sorted(p.name for p in Path("empty").iterdir()) == RUN_FILES


