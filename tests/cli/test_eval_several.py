"""`pwoa eval RUN1 RUN2 ...`: every model as it is alone, on the same samples, in one table."""
import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_models as small
from helpers.cli_world import TINY
from PIL import Image

import pwoa_cli
from pwoa_cli.files.plain import read_json, write_json
from pwoa_cli.networks.families.small import LeNet

ATTACKED = ["--n", "20", "--attacks", "fgsm,pgd-2", "--json"]


@pytest.fixture(scope="module")
def two_runs(world, tmp_path_factory):
    """A world with two runs of one teacher, `half` and `most`, and another network."""
    folder = tmp_path_factory.mktemp("several")
    shutil.copytree(world, folder, dirs_exist_ok=True)
    small.save(small.learn(small.lenet(), seed=3), folder / "other.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, sparsity in (("half", 0.5), ("most", 0.9)):
            pwoa_cli.prune("model.pt", sparsity, out=name, data="tiny.npz", eps=0.05, samples=20,
                           attacks="fgsm", settings={"epochs": 0.1, "batch_size": 16})
    return folder


@pytest.fixture
def there(two_runs, tmp_path, monkeypatch):
    shutil.copytree(two_runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changed(folder, **changes):
    """Fields of a run's report with other values."""
    path = Path(folder, "report.json")
    made = read_json(path)
    for name, values in changes.items():
        made[name] |= values
    write_json(path, made)


def measured(pwoa, *args):
    code, out, err = pwoa("eval", *args)
    assert code == 0, err
    return json.loads(out), err


def test_each_run_has_the_figures_that_it_has_alone(there, pwoa):
    both, err = measured(pwoa, "half", "most", *ATTACKED)
    assert list(both["models"]) == ["teacher", "half", "most"] and both["reference"] == "teacher"
    assert all(any(line.startswith("normalisation: ") for line in model["inferred"])
               for model in both["models"].values())
    assert "teacher: model.pt, of half and most." in both["notes"] and "teacher: model.pt, of half" in err
    for name in ("half", "most"):
        alone, _ = measured(pwoa, name, *ATTACKED)
        model = both["models"][name]
        assert model["scores"] == alone["student"] and model["drop"] == alone["drop"]
        assert both["models"]["teacher"]["scores"] == alone["teacher"]
        assert model["sparsity"] == read_json(Path(name, "report.json"))["sparsity"]["achieved"]
    assert both["models"]["teacher"]["drop"] == {} and not {"results", "teacher", "student"} & both.keys()
    assert both["threat"] == {"norm": "linf", "eps": 0.05}


def test_a_file_among_runs_is_compared_with_their_teacher_too_and_that_is_said(there, pwoa):
    made, _ = measured(pwoa, "half", "other.pt", *ATTACKED)
    pair, _ = measured(pwoa, "other.pt", "--compare", "model.pt", *TINY, *ATTACKED, "--eps", "0.05")
    assert made["models"]["other.pt"]["drop"] == pair["drop"]
    assert any("with which other.pt is compared too" in note for note in made["notes"])


def test_files_alone_have_no_reference_but_a_named_one(there, pwoa):
    args = ["other.pt", "pruned.safetensors", *TINY, *ATTACKED]
    made, err = measured(pwoa, *args)
    assert made["reference"] is None and "there are no drops (--compare FILE" in err
    assert all(model["drop"] == {} for model in made["models"].values())
    made, _ = measured(pwoa, *args, "--compare", "model.pt")
    assert made["reference"] == "compared" and list(made["models"]) == ["compared", "other.pt",
                                                                       "pruned.safetensors"]
    assert made["models"]["other.pt"]["drop"].keys() == {"clean", "fgsm", "pgd-2", "worst case"}


@pytest.mark.parametrize(("changes", "said", "decides"), [
    ({"threat": {"eps": 0.1}}, "different threats: half: linf, eps 0.05; most: linf, eps 0.1.",
     ["--norm", "linf", "--eps", "0.05"]),
    ({"threat": {"norm": "l2"}}, "half: linf, eps 0.05; most: l2, eps 0.05.",
     ["--norm", "l2", "--eps", "0.2"]),
    ({"data": {"argument": "more.npz"}}, "different data: half: tiny.npz; most: more.npz.",
     ["--data", "tiny.npz"]),
    ({"data": {"shape": [1, 9, 9], "images": "9x9"}}, "half: tiny.npz; most: tiny.npz.",
     ["--data", "tiny.npz"]),
    ({"data": {"choices": {"labels_from": 1}}}, "half: tiny.npz; most: tiny.npz, labels_from 1.",
     ["--data", "tiny.npz"])])
def test_runs_that_differ_say_who_says_what_and_the_option_that_decides(there, pwoa, changes, said, decides):
    shutil.copy("tiny.npz", "more.npz")
    changed("most", **changes)
    code, out, err = pwoa("eval", "half", "most", *ATTACKED)
    assert code == 2 and not out and said in " ".join(err.split()) and decides[0] in err
    assert "evaluate 0%" not in err
    made, _ = measured(pwoa, "half", "most", *ATTACKED, *decides)
    assert list(made["models"]) == ["teacher", "half", "most"]


def test_a_path_to_the_data_may_be_written_in_two_ways(there, pwoa):
    changed("most", data={"argument": str(there / "tiny.npz")})
    assert len(measured(pwoa, "half", "most", *ATTACKED)[0]["models"]) == 3


def test_a_threat_in_float32_is_the_same_threat(there, pwoa):
    changed("most", threat={"eps": float(np.float32(0.05))})
    assert len(measured(pwoa, "half", "most", *ATTACKED)[0]["models"]) == 3


def test_files_that_name_other_threats_are_told_apart(there, pwoa):
    pwoa_cli.prune("model.pt", 0.5, out="low", data="tiny.npz", eps=0.02, samples=20, attacks="fgsm",
                   settings={"epochs": 0.1, "batch_size": 16})
    files = ["half/model.safetensors", "low/model.safetensors", "--data", "tiny.npz", *ATTACKED]
    code, _, err = pwoa("eval", *files)
    assert code == 2 and "half: linf, eps 0.05; low: linf, eps 0.02." in err
    assert measured(pwoa, *files, "--eps", "0.05")[0]["threat"]["eps"] == 0.05
    # one that says nothing goes with the one that does, whatever their order
    for order in (["half/model.safetensors", "other.pt"], ["other.pt", "half/model.safetensors", "--norm",
                                                           "linf", "--eps", "0.05"]):
        assert measured(pwoa, *order, "--data", "tiny.npz", *ATTACKED)[0]["threat"]["eps"] == 0.05


def test_runs_of_different_teachers_have_no_drops(there, pwoa):
    changed("most", model={"teacher_sha256": "1" * 64, "teacher": "gone.pt"})
    made, err = measured(pwoa, "half", "most", *ATTACKED)
    assert made["reference"] is None and "different teachers (half: model.pt; most: gone.pt)" in err
    code, out, err = pwoa("eval", "half", "most", *ATTACKED, "--max-drop", "worst=1")
    assert code == 2 and not out and "no other model to lose against" in err
    made, _ = measured(pwoa, "half", "most", *ATTACKED, "--compare", "model.pt")
    assert made["reference"] == "compared" and made["models"]["most"]["drop"]


def test_a_shared_teacher_is_found_where_one_of_the_runs_finds_it(there, pwoa):
    changed("half", model={"teacher": "was/here.pt"})
    assert measured(pwoa, "half", "most", *ATTACKED)[0]["models"]["teacher"]["source"] == "model.pt"
    changed("most", model={"teacher": "other.pt"})
    code, _, err = pwoa("eval", "half", "most", *ATTACKED)
    assert code == 2 and "its SHA-256 differs" in err and "--compare FILE" in err
    changed("most", model={"teacher": "gone.pt"})
    made, err = measured(pwoa, "half", "most", *ATTACKED)
    assert made["reference"] is None and "is not there any more" in err


def test_the_same_network_twice_is_said_and_the_reference_stands_once(there, pwoa):
    shutil.copytree("half", "copy")
    made, _ = measured(pwoa, "half", "copy", "model.pt", *ATTACKED)
    assert list(made["models"]) == ["teacher", "half", "copy"]
    assert any(note.startswith("half and copy are the same network") for note in made["notes"])
    assert any(note.startswith("model.pt is the reference itself") for note in made["notes"])
    assert made["models"]["half"]["scores"] == made["models"]["copy"]["scores"]
    made, _ = measured(pwoa, "half", "half", *ATTACKED)
    assert list(made["models"]) == ["teacher", "half", "half (2)"]


def test_gates_are_judged_for_each_model_but_the_reference(there, pwoa):
    args = ["half", "most", "other.pt", *ATTACKED, "--min", "clean=0.5", "--max-drop", "clean=100", "--junit",
            "g.xml"]
    code, out, err = pwoa("eval", *args)
    verdicts = json.loads(out)["gates"]
    assert [v["model"] for v in verdicts] == ["half", "half", "most", "most", "other.pt", "other.pt"]
    assert code == 0 and err.count("gate passed: ") == 6 and "gate passed: most: --min clean=0.5" in err
    names = [case.get("name") for case in ET.parse("g.xml").getroot()]
    assert names[0] == "half: --min clean=0.5" and len(names) == 6
    code, out, err = pwoa("eval", *args, "--max-drop", "pgd-2=-100")
    assert code == 1 and err.count("gate failed: ") == 3 and "gate failed: other.pt: --max-drop" in err


def test_several_are_stopped_by_time_and_resumed_to_equal_figures(there, pwoa):
    args = ["half", "most", *ATTACKED]
    whole, _ = measured(pwoa, *args)
    code, out, _ = pwoa("eval", *args, "--max-seconds", "1e-9", "--min", "clean=0")
    late = json.loads(out)
    assert code == 3 and late["unfinished"]["most"]["pgd-2"] == {"n": 0, "of": 20}
    assert all(gate["passed"] for gate in late["gates"])
    again, _ = measured(pwoa, *args, "--resume")
    assert again["models"] == whole["models"]


def test_samples_classes_and_a_report_of_several(there, pwoa):
    made, _ = measured(pwoa, "half", "most", *ATTACKED, "--per-class", "--save-samples", "s.npz",
                       "--out", "o")
    assert read_json(Path("o/report.json")) == made
    with np.load("s.npz") as file:
        for who, model in made["models"].items():
            assert file[f"{who}/correct/pgd-2"].mean() == model["scores"]["pgd-2"]["accuracy"]
            assert file[f"{who}/inputs"].shape == (20, 1, 8, 8)
    text = Path("o/report.md").read_text()
    assert text.startswith("# 2 models under attack\n\nworst case: teacher ")
    assert "|  | teacher | half | most |" in text and "| drop | half | most |" in text
    assert "## By class (half)" in text and "## By class (most)" in text
    assert pwoa("eval", "half", "most", *ATTACKED, "--out", "o")[0] == 2
    assert pwoa("eval", "half", "most", *ATTACKED, "--out", "o", "--resume")[0] == 0


def test_models_of_other_images_or_classes_are_refused(there, pwoa):
    small.save(small.learn(small.resnet(), channels=3), "colour.pt")
    code, out, err = pwoa("eval", "half", "colour.pt", *ATTACKED)
    assert code == 2 and not out and "evaluate 0%" not in err and "Traceback" not in err
    for args in (["half", "nowhere"], ["half", "most", "--compare", "nowhere"]):
        code, _, err = pwoa("eval", *args, *ATTACKED)
        assert code == 2 and "nowhere: there is no such file" in err and "run: " not in err  # at once
    Path("empty").mkdir()
    code, _, err = pwoa("eval", "half", "empty", *ATTACKED)
    assert code == 2 and "empty is no finished run" in err


def test_models_that_take_other_sizes_of_the_same_pictures_are_told_apart(there, pwoa):
    arrays = np.load("tiny.npz")
    for split in ("train", "test"):
        for number, (image, label) in enumerate(zip(arrays[f"x_{split}"], arrays[f"y_{split}"], strict=True)):
            path = Path("pictures", split, str(int(label)), f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.squeeze()).save(path)
    x = torch.tensor(arrays["x_train"]).permute(0, 3, 1, 2) / 255
    labels = torch.tensor(arrays["y_train"]).long()
    large = LeNet(size=16, widths=(4, 8), hidden=16, num_classes=4)
    optimizer = torch.optim.Adam(large.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(large(torch.nn.functional.interpolate(
            x, scale_factor=2, mode="bilinear")), labels).backward()
        optimizer.step()
    small.save(large, "large.pt")
    args = ["--data", "pictures", "--eps", "0.05", *ATTACKED]
    code, out, err = pwoa("eval", "model.pt", "large.pt", *args)
    assert code == 2 and not out and "evaluate 0%" not in err
    assert "These models take different images or classes: model.pt: 1 channel of 8x8" in err
    assert "; large.pt: 1 channel of 16x16" in err and "--image-size N" in err
    assert measured(pwoa, "model.pt", "other.pt", *args)[0]["models"].keys() == {"model.pt", "other.pt"}


def test_a_dry_run_of_several_attacks_nothing(there, pwoa):
    code, out, err = pwoa("eval", "half", "most", *ATTACKED, "--dry-run")
    assert code == 0 and json.loads(out)["dry_run"] and "evaluate" not in err
