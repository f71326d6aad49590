"""Run folders wherever a model is, and the list of them."""
import json
import shutil
from pathlib import Path

from helpers.cli_world import PRUNE, TINY
from helpers.processes import in_terminal

from pwoa_cli.files import run_folder
from pwoa_cli.reports.numbers import radius


def test_a_run_is_a_model_for_info_prune_and_compare(here, pwoa):
    run = run_folder.newest()
    code, out, _ = pwoa("info", run, "--json")
    found = json.loads(out)
    assert code == 0 and found["pruned"] and found["source"] == str(run / "model.safetensors")
    code, out, err = pwoa("prune", run, *PRUNE[2:3], "0.95", *PRUNE[4:], "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made["model"]["source"] == str(run / "model.safetensors")
    assert Path(made["run"]["folder"]).name.startswith(f"{run.name}-0.95-")
    code, out, err = pwoa("eval", "model.pt", "--compare", run, *TINY, "--attacks", "fgsm", "--json")
    assert code == 0 and json.loads(out)["headings"] == ["compared", "model"], err


def test_runs_are_listed_oldest_first_with_their_state(here, pwoa):
    root = run_folder.ROOT
    assert pwoa(*PRUNE, "--seed", "1")[0] == 0
    first, second = sorted(path for path in root.iterdir() if path.name[0] != ".")
    shutil.copytree(second, root / "cut")
    (root / "cut/model.safetensors").unlink()
    shutil.copytree(second, root / "odd")
    (root / "odd/report.json").write_text('{"sparsity": 1}')
    (root / "nothing").mkdir()
    (root / "evaluation").mkdir()  # was an unfinished run
    shutil.copy(second / "report.json", root / "evaluation")
    code, out, _ = pwoa("runs", "--json")
    listed = {Path(entry["folder"]).name: entry for entry in json.loads(out)["runs"]}
    assert code == 0 and list(listed) == ["cut", "odd", first.name, second.name]
    assert listed["cut"]["state"] == "unfinished" and listed["odd"]["state"].startswith("broken: ")
    report = json.loads((second / "report.json").read_text())
    entry = listed[second.name]
    assert entry["model"] == "model.pt" and entry["sparsity"] == report["sparsity"]["achieved"]
    assert entry["clean"] == {"teacher": 1.0, "pruned": report["student"]["clean"]["accuracy"]}
    assert entry["worst_case"]["pruned"] == report["student"]["fgsm"]["accuracy"]
    assert [entry[key] for key in ("attacks", "norm", "eps", "data", "n")] == [
        ["fgsm"], "linf", report["threat"]["eps"], report["data"]["name"], report["data"]["n"]]
    code, out, _ = pwoa("runs", root)
    assert f"| fgsm at linf {radius(entry['eps'])}, {entry['n']} of {entry['data']} |" in out
    assert code == 0 and out.startswith("| run | model | zeros |") and out.count("\n") == 6
    assert pwoa("runs", "nowhere")[0] == 2
    Path("empty").mkdir()
    assert pwoa("runs", "empty")[1] == "no run there\n"


def test_runs_hold_at_60_columns(here):
    code = "from pwoa_cli.cli.main import main; main()"
    text = in_terminal(code, ["runs"], columns=60)
    assert max(map(len, text.splitlines())) <= 60 and "worst case" in text and "finished" in text
