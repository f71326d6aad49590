"""`pwoa info`: what it says of each kind of file, as text and as JSON, and of wrong use."""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import small_models as small
from helpers.workflow_calls import described

from pwoa_cli.networks.build import build
from pwoa_cli.networks.families.resnet import CifarResNet


def test_a_plain_checkpoint(here, pwoa):
    code, out, err = pwoa("info", "model.pt")
    assert code == 0 and err == "loading torch\nnext: pwoa prune model.pt --sparsity 0.9\n"
    assert out.startswith("# model.pt: lenet5, 4 classes, 1 x 8 x 8\n")
    for words in ("- architecture: lenet5 with size=8 from the keys conv1, conv2, ",
                  "- normalisation: none in the file, ",
                  "- threat: not in the file (--norm, --eps say it)",
                  "- weights: 900 in 4 layers (932 parameters in all)",
                  "- sparsity: 0%: 900 of 900 nonzero", "| conv2.weight | 8x4x3x3 | 288 | 0 |", "SHA-256 "):
        assert words in out
    assert len(out.splitlines()) < 25


def test_json_is_the_same_content(here, pwoa):
    code, out, _ = pwoa("info", "model.pt", "--json", "--quiet")
    made = json.loads(out)
    assert code == 0 and made == json.loads(json.dumps(described("model.pt")))
    assert (made["arch"] == "lenet5" and made["num_classes"] == 4 and made["input_shape"] == [1, 8, 8]
            and made["pruned"] is None)
    assert made["weights"] == {"total": 900, "nonzero": 900, "dead": 0, "sparsity": 0.0}
    assert made["parameters"] == 932
    assert made["normalisation"]["mean"] is None and made["normalisation"]["said_by"] == "nobody"
    assert [row["live"] for row in made["layers"]] == [True] * 4


def test_a_pruned_file_with_its_history_and_report(here, pwoa):
    run = next(Path("pwoa-runs").iterdir())
    code, out, err = pwoa("info", str(run / "model.safetensors"))
    assert code == 0 and err == "loading torch\n"
    assert "- pruned from: model.pt, SHA-256 " in out and "- recipe: default, seed 0, data tiny, pwoa " in out
    assert "- sparsity: 90%: 90 of 900 nonzero" in out and "- report: clean " in out
    made = described(run / "model.safetensors")
    assert (made["pruned"]["report"]["sparsity"]["nonzero"] == 90
            and made["pruned"]["source_sha256"] == described("model.pt")["sha256"])
    assert described("pruned.safetensors")["pruned"]["report"] is None, "alone, without the report beside it"
    shutil.copy(run / "report.json", "report.json")
    assert described("pruned.safetensors")["pruned"]["report"] is not None


def test_unwrapped_layers_of_a_file(here, pwoa):
    state = torch.load("model.pt")
    torch.save({"net": {"state_dict": {f"module.{k}": t for k, t in state.items()}}, "epoch": 3},
               "wrapped.pt")
    _, out, _ = pwoa("info", "wrapped.pt")
    assert re.search(r"- reading: unwrapped: net > state_dict; prefix module\.", out)


def test_a_file_of_no_known_architecture_says_what_to_do_and_doing_it_works(here, pwoa):
    Path("mine.py").write_text("from torch import nn\ndef net(num_classes=4):\n"
                               "    return nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 16), "
                               "nn.ReLU(), nn.Linear(16, num_classes))\n")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LayerNorm(64), torch.nn.Linear(64, 16),
                              torch.nn.ReLU(), torch.nn.Linear(16, 4))
    torch.save(net.state_dict(), "mine.pt")
    code, out, err = pwoa("info", "mine.pt")
    assert code == 0 and err == "loading torch\n" and "an architecture that pwoa does not know" in out
    assert ("- next: Name it: --arch resnet18 (any timm or torchvision name), "
            "or write it: --arch file.py:fn") in out
    assert "| 2.weight | 16x64 | 1,024 | 0 |" in out
    code, out, _ = pwoa("info", "mine.pt", "--arch", "mine.py:net")
    assert code == 0 and "# mine.pt: mine.py:net, 4 classes" in out
    code, _, err = pwoa("prune", "mine.pt", "--sparsity", "0.9")
    assert code == 2
    assert "is of no architecture that pwoa knows by its keys: 6 tensors, first 1.weight (64,)" in err


def test_clean_accuracy_where_data_is_named(here, pwoa):
    code, out, _ = pwoa("info", "model.pt", "--data", "tiny.npz")
    assert code == 0 and "- right on: 100.0% of 256 training images of tiny.npz\n" in out
    small.save(small.lenet(), "untrained.pt")
    code, out, _ = pwoa("info", "untrained.pt", "--data", "tiny.npz")
    assert (code == 0
            and re.search(r"- right on: \d\d\.\d% of 256 training images of tiny.npz: near chance, so", out))


@pytest.mark.parametrize(("args", "message"), [
    (["absent.pt"], "absent.pt: there is no such file"), (["."], "is not a file, it is a folder"),
    (["model.pt", "--keep", "2"], "--keep 2 is not a number above 0 and up to 1"),
    (["model.pt", "--normalize", "imagnet"], "Did you mean imagenet?"),
    (["model.pt", "--entry", "best"], "best"),
    (["model.pt", "--arch", "lenet5:padded"], "'padded' is not option=value"),
    (["model.pt", "--arch", "lenet5:paded=true"], "Did you mean padded?")])
def test_wrong_use(here, pwoa, args, message):
    code, out, err = pwoa("info", *args)
    assert code == 2 and not out and message in err and "hint: " in err and "Traceback" not in err


def test_a_family_of_ours_is_described_without_the_libraries_that_load_slowly(tmp_path):
    """The time itself is in docs/benchmarks.md; here: no library but torch is imported for a family of
    ours."""
    torch.save(CifarResNet(blocks=(2, 2, 2, 2), widths=(4, 8, 8, 8), shortcut="conv").state_dict(),
               tmp_path / "m.pt")
    code = ("import sys; from pwoa_cli.cli import main; sys.argv = ['pwoa', 'info', sys.argv[1], '--json']\n"
            "try: main.main()\nexcept SystemExit as stop: assert not stop.code\n"
            "print([m for m in ('timm', 'torchvision', 'torch_pruning', 'huggingface_hub', 'PIL', 'rich')\n"
            "       if m in sys.modules], file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.pt")], capture_output=True,
                          text=True)
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("size", [[], 3, {"file_bytes": "x"}, None])
def test_a_report_beside_a_pruned_file_that_is_of_something_else(here, pwoa, size):
    Path("report.json").write_text(json.dumps({"size": size}))
    code, out, err = pwoa("info", "pruned.safetensors", "--json")
    assert code == 0 and json.loads(out)["pruned"]["report"] is None, err


def test_the_network_of_the_documentation(here, pwoa):
    """docs/checkpoints.md, a network of your own: the file as printed there, then both commands."""
    text = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text()
    block = next(b for b in re.findall(r"(?:^(?:    .*)?\n)+", text, re.M) if "# mine.py" in b)
    lines = [line[4:] for line in block.splitlines()]
    Path("mine.py").write_text("\n".join(line for line in lines if not line.startswith("pwoa ")))
    torch.save(build("mine.py:net", {"num_classes": 4}).state_dict(), "mine.pt")
    first, second = (line.split()[1:] for line in lines if line.startswith("pwoa "))
    code, out, err = pwoa(*first)
    assert code == 0 and "# mine.pt: mine.py:net, 4 classes" in out, err
    colours = small.write_npz("colours.npz", channels=3)
    second[second.index("cifar10")] = colours
    code, out, err = pwoa(*second, "--eps", "0.1", "--n", "20", "--attacks", "fgsm", "--epochs", "0.1",
                          "--normalize", "none")
    assert code == 2 and "near chance" in err or code in (0, 3), err  # its weights are random
