"""The commands as functions: the same figures as the command line's, nothing printed, errors that can be
caught."""
import importlib.util
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli_world import PRUNE, TINY

import pwoa_cli
from pwoa_cli.errors import InputError
from pwoa_cli.workflows import parameters

SETTINGS = {"data": "tiny.npz", "eps": 0.5, "samples": 20}
QUICK = {"settings": {"epochs": 0.1, "batch_size": 16}, "attacks": "fgsm"}


def test_prune_gives_what_the_command_gives_and_prints_nothing(here, pwoa, capfd):
    assert pwoa(*PRUNE, "--out", "by_command")[0] == 0
    steps, said = [], []
    run = pwoa_cli.prune("model.pt", 0.9, out="by_api", **SETTINGS, **QUICK,
                         progress=lambda *state: steps.append(state), say=said.append)
    assert capfd.readouterr() == ("", "")
    assert run.model.read_bytes() == Path("by_command/model.safetensors").read_bytes()
    report = json.loads(Path("by_command/report.json").read_text())
    assert run.scores["clean"].accuracy == report["student"]["clean"]["accuracy"]
    assert run.teacher["fgsm"].ci95 == tuple(report["teacher"]["fgsm"]["ci95"])
    assert run.worst == run.scores["fgsm"] and not run.short
    assert {"prune", "evaluate"} <= {phase for phase, *_ in steps} and any("data set" in s for s in said)
    again = pwoa_cli.prune(run.folder, 0.95, **SETTINGS, **QUICK)
    assert again.folder.parent.name == "pwoa-runs" and again.report["sparsity"]["target"] == 0.95


def test_evaluate_of_a_file_and_of_a_run(here, pwoa):
    alone = pwoa_cli.evaluate("model.pt", attacks="pgd-2,fgsm", **SETTINGS)
    assert alone.teacher == {} and alone.scores["clean"].accuracy == 1.0 and alone.scores["clean"].n == 20
    assert alone.worst == alone.scores["worst case"] and not Path("pwoa-runs/.eval").exists()
    run = next(Path("pwoa-runs").glob("model-*"))
    beside = pwoa_cli.evaluate(run, attacks="fgsm", samples=20)
    assert beside.teacher["clean"].accuracy == 1.0 and beside.report["headings"] == ["teacher", "pruned"]
    late = pwoa_cli.evaluate("model.pt", attacks="aa", max_seconds=1e-9, **SETTINGS)
    assert late.short and late.worst is None


def test_evaluate_of_several_gives_each_as_it_is_alone(here):
    run = next(Path("pwoa-runs").glob("model-*"))
    options = {"attacks": "fgsm,pgd-2", "samples": 20}
    both = pwoa_cli.evaluate([run, "pruned.safetensors"], **options)
    alone = pwoa_cli.evaluate(run, **options)
    assert list(both) == ["model-0.9", "pruned.safetensors"]
    of_run = both["model-0.9"]
    assert (of_run.scores, of_run.teacher, of_run.worst) == (alone.scores, alone.teacher, alone.worst)
    assert of_run.report["drop"] == alone.report["drop"] and not of_run.short
    (one,) = pwoa_cli.evaluate([run], **options).values()
    assert one.scores == alone.scores
    late = pwoa_cli.evaluate([run, "model.pt"], max_seconds=1e-9, **options)
    assert all(result.short and result.worst is None for result in late.values())
    with pytest.raises(InputError, match="names no model"):
        pwoa_cli.evaluate([])


def test_channels_are_removed_as_the_command_removes_them(here, pwoa):
    words = [*PRUNE[:2], "--channels", "0.5", *PRUNE[4:]]
    assert pwoa(*words, "--out", "by_command")[0] == 0
    run = pwoa_cli.prune("model.pt", channels=0.5, structure="channel", out="by_api", **SETTINGS, **QUICK)
    assert run.model.read_bytes() == Path("by_command/model.safetensors").read_bytes()
    default = pwoa_cli.prune("model.pt", channels=0.25, structure="channel", **SETTINGS, **QUICK)
    assert default.folder.name.startswith("model-0.25-")
    assert pwoa(*words[:2], "--macs", "0.5", *words[4:], "--out", "macs_by_command")[0] == 0
    run = pwoa_cli.prune("model.pt", macs=0.5, **SETTINGS, **QUICK)
    assert run.folder.name.startswith("model-macs0.5-")
    assert run.model.read_bytes() == Path("macs_by_command/model.safetensors").read_bytes()
    assert 'macs = "0.5"' in Path("macs_by_command/config.toml").read_text()


@pytest.mark.parametrize(("format", "options", "words"), [
    ("sparse", {}, []), ("dense", {"prefix": "module."}, ["--prefix", "module."]), ("onnx", {}, []),
    ("dense", {"like": Path("model.pt"), "dtype": "bf16", "measure": False},
     ["--like", "model.pt", "--dtype", "bf16", "--no-measure"])])
def test_export_writes_what_the_command_writes_and_prints_nothing(here, pwoa, capfd, format, options, words):
    ending = ".safetensors" if format == "sparse" else ".onnx" if format == "onnx" else ".pt"
    code, out, err = pwoa("export", "pruned.safetensors", "--format", format, *words, "--out",
                          f"by_command{ending}", "--json")
    assert code == 0, err
    said = []
    made = pwoa_cli.export("pruned.safetensors", format, f"by_api{ending}", say=said.append, **options)
    assert capfd.readouterr() == ("", "") and f"writing by_api{ending}" in said
    assert made.path.read_bytes() == Path(f"by_command{ending}").read_bytes()
    found = json.loads(out)
    assert (made.path, made.size_bytes, made.format) == (
        Path(f"by_api{ending}"), made.path.stat().st_size, format)
    assert made.largest_difference == found["largest_difference"] and made.measured is None
    assert made.report == found | {"file": str(made.path)}


def test_export_of_a_run_measures_what_was_rounded(here):
    run = next(Path("pwoa-runs").glob("model-*"))
    made = pwoa_cli.export(run, "sparse", dtype="int8", attacks="fgsm", samples=20)
    assert made.path == Path(f"{run.name}-sparse.safetensors") and made.largest_difference > 0
    again = pwoa_cli.evaluate(made.path, attacks="fgsm", **SETTINGS)
    assert made.measured.scores == again.scores and made.measured.teacher["clean"].n == 20


def test_a_curve_is_that_of_the_command(here, pwoa):
    made = pwoa_cli.evaluate("model.pt", attacks="fgsm", curve=[0.1, "2/255"], **SETTINGS)
    alone = pwoa_cli.evaluate("model.pt", attacks="fgsm", **SETTINGS | {"eps": 0.1})
    assert list(made.curve) == [0.0, 2 / 255, 0.1, 0.5]
    again = pwoa_cli.evaluate("model.pt", attacks="fgsm", curve=(0, 0.0, 0.1, "2/255"), **SETTINGS)
    assert again.curve == made.curve
    assert pwoa_cli.evaluate("model.pt", attacks="fgsm", curve=None, **SETTINGS).curve == {}
    assert made.curve[0.1] == alone.worst and made.curve[0.5] == made.worst
    assert made.curve[0.0] == made.scores["clean"] and alone.curve == {}
    code, out, _ = pwoa("eval", "model.pt", *TINY, "--attacks", "fgsm", "--curve", "0.1,2/255", "--json")
    assert code == 0 and json.loads(out)["curve"] == made.report["curve"]
    both = pwoa_cli.evaluate(["model.pt", "pruned.safetensors"], attacks="fgsm", curve=[0.1], **SETTINGS)
    assert both["model.pt"].curve[0.1] == made.curve[0.1]
    assert both["pruned.safetensors"].curve[0.5] == both["pruned.safetensors"].worst
    run = pwoa_cli.evaluate(next(Path("pwoa-runs").glob("model-*")), attacks="fgsm", curve=[0.1], samples=20)
    assert run.curve[0.5] == run.worst


@pytest.mark.parametrize("curve", ["0.1", 0.1, [0.1, None], [(0.1,)], [True]])
def test_a_curve_that_is_no_list_of_radii_is_told(here, curve):
    with pytest.raises(InputError, match="is no list of radii") as caught:
        pwoa_cli.evaluate("model.pt", curve=curve, **SETTINGS)
    assert "curve=[" in caught.value.hint
    for wrong in ("x", ""):
        with pytest.raises(InputError, match="eps|radius"):
            pwoa_cli.evaluate("model.pt", curve=[wrong], **SETTINGS)


def test_wrong_input_is_an_error_of_ours_and_leaves_nothing(here):
    before = sorted(here.rglob("*"))
    for call in (lambda: pwoa_cli.prune("missing.pt", 0.9, out="o"),
                 lambda: pwoa_cli.evaluate("model.pt", attacks="nothing", **SETTINGS),
                 lambda: pwoa_cli.prune("model.pt", 0.9, out="o", settings={"lr": "x"}, **SETTINGS),
                 lambda: pwoa_cli.prune("model.pt", 0.9, channels=0.5, **SETTINGS),
                 lambda: pwoa_cli.prune("model.pt", channels=0.5, structure="filter", **SETTINGS),
                 lambda: pwoa_cli.export("missing.pt", "dense"),
                 lambda: pwoa_cli.export("model.pt", "best"),
                 lambda: pwoa_cli.export("model.pt", "dense", "model.pt"),
                 lambda: pwoa_cli.export("model.pt", "dense", "o.pt", dtype="int8")):
        with pytest.raises(InputError):
            call()
    assert sorted(here.rglob("*")) == before
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pwoa_cli.nothing  # noqa: B018


def test_a_checkpoint_is_read_as_the_command_reads_it(here, pwoa):
    """Numbers of the normalisation, one of two models in a file, a file that runs code."""
    state = torch.load("model.pt", weights_only=True)
    torch.save({"epoch": Opaque(), "first": {k: t * 0 for k, t in state.items()}, "best": state}, "two.pt")
    words = ["--mean", "0.1", "--std", "0.9", "--entry", "best", "--trust-pickle"]
    options = {"mean": [0.1], "std": (0.9,), "entry": "best", "trust_pickle": True}
    assert pwoa(*PRUNE[:1], "two.pt", *PRUNE[2:], *words, "--out", "by_command")[0] == 0
    run = pwoa_cli.prune("two.pt", 0.9, out="by_api", **options, **SETTINGS, **QUICK)
    assert run.model.read_bytes() == Path("by_command/model.safetensors").read_bytes()
    found = pwoa_cli.evaluate("two.pt", attacks="fgsm", **options, **SETTINGS)
    assert found.scores["clean"] == run.teacher["clean"]
    made = pwoa_cli.export("two.pt", "dense", "o.pt", like="none", **options)
    assert made.report["normalisation"] == {"mean": (0.1,), "std": (0.9,)}


class Opaque:
    """What is rebuilt by code alone."""

    def __reduce__(self):
        return Opaque, ()


@pytest.mark.parametrize("number", [1.5, 90, 0.0, 1.0, -1, float("nan"), float("inf"), "much"])
def test_fractions_that_are_none_are_told_as_the_command_tells_them(here, number):
    before = sorted(here.rglob("*"))
    for options in ({"sparsity": number}, {"channels": number, "structure": "channel"}):
        with pytest.raises(InputError, match=f"^--{list(options)[0]} {number} is not ") as caught:
            pwoa_cli.prune("model.pt", **options, **SETTINGS)
        assert caught.value.hint
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(("call", "options"), [
    (pwoa_cli.prune, {"samples": 2.5}), (pwoa_cli.prune, {"samples": None}), (pwoa_cli.prune, {"seed": 1.5}),
    (pwoa_cli.prune, {"held_out": 50.5}), (pwoa_cli.prune, {"max_loss": "1"}),
    (pwoa_cli.prune, {"num_classes": True}), (pwoa_cli.prune, {"samples": np.int64(20)}),
    (pwoa_cli.evaluate, {"samples": "20"}),
    (pwoa_cli.evaluate, {"batch_size": 2.5}), (pwoa_cli.evaluate, {"seed": None}),
    (pwoa_cli.evaluate, {"max_seconds": "60"}), (pwoa_cli.evaluate, {"max_seconds": -1}),
    (pwoa_cli.evaluate, {"max_seconds": float("nan")}), (pwoa_cli.export, {"samples": 2.5})])
def test_numbers_of_another_kind_are_told_before_anything_is_read(call, options):
    (name, value), = options.items()
    with pytest.raises(InputError, match=f"^{re.escape(f'{name}={value!r}')} is not ") as caught:
        call("missing.pt", **({"format": "dense"} if call == pwoa_cli.export else {}), **options)
    assert f"{name}=" in caught.value.hint


WRONG = [None, 5, -1.5, True, [object()], ("x", 5), {5: "x"}, {"a": 1}, object(), b"x", "", "x",
         np.array(0.5), np.zeros((2, 2)), torch.tensor(0.1), torch.nn.Linear(1, 1)]
GIVEN = {pwoa_cli.prune: {"model": "missing.pt", "sparsity": 0.9}, pwoa_cli.evaluate: {"model": "missing.pt"},
         pwoa_cli.export: {"model": "missing.pt", "format": "dense"}, pwoa_cli.load: {"path": "missing.pt"},
         pwoa_cli.load_state_dict: {"path": "missing.pt"}}
EVERY = [(call, name) for call in GIVEN for name in inspect.signature(call).parameters]


@pytest.mark.parametrize(("call", "name"), EVERY, ids=lambda one: getattr(one, "__name__", one))
def test_whatever_is_given_in_the_place_of_anything_only_our_errors_come(tmp_path, monkeypatch, call, name):
    """Of the wrong kind it is told by the parameter's name; what is of the right one ends at the file."""
    monkeypatch.chdir(tmp_path)
    default, kind = inspect.signature(call).parameters[name].default, parameters.KINDS[name]
    kind = parameters.OF_ONE.get((call.__name__, name), kind)
    for value in WRONG:
        with pytest.raises(InputError) as caught:
            call(**GIVEN[call] | {name: value})
        fine = default is None if value is None else kind.takes(value)
        told = f"{name}={' '.join(repr(value).split())[:60]}"
        assert caught.value.message.startswith(told) != fine, (value, caught.value.message)
        assert fine or caught.value.hint == f"For example: {name}={kind.example}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", parameters.KINDS)
def test_the_example_of_a_parameter_is_of_its_kind(name):
    for kind in {parameters.KINDS[name], parameters.OF_ONE.get(("evaluate", name), parameters.KINDS[name])}:
        assert kind.takes(eval(kind.example))  # noqa: S307 (the package's own words)


def test_what_people_write_instead_is_taken(here):
    """Names in a list, torch's own device, bytes as they are typed, a path where text would do."""
    fine = pwoa_cli.evaluate("model.pt", attacks="fgsm,pgd-2", **SETTINGS)
    for options in ({"attacks": ["fgsm", "pgd-2"]},
                    {"attacks": ("fgsm", "pgd-2"), "device": torch.device("cpu")},
                    {"attacks": ["fgsm,pgd-2"], "mean": np.array([0.0]), "std": np.array([1.0])},
                    {"attacks": ["fgsm", "pgd-2"], "eps": np.float32(0.5)}):
        assert pwoa_cli.evaluate("model.pt", **SETTINGS | options).scores == fine.scores
    runs = [pwoa_cli.prune("model.pt", target_bytes=size, **SETTINGS, **QUICK | {"attacks": ["fgsm"]})
            for size in ("1.2k", 1200)]
    assert runs[0].model.read_bytes() == runs[1].model.read_bytes()
    assert runs[0].model.stat().st_size <= 1200 and runs[0].folder.name.startswith("model-1200B-")
    with pytest.raises(InputError, match="no number of bytes") as caught:
        pwoa_cli.prune("model.pt", target_bytes="much", **SETTINGS)
    assert caught.value.hint == "Such as --target-bytes 500k"


def test_a_run_s_folder_is_loaded_as_its_file_is(here):
    run = next(Path("pwoa-runs").glob("model-*"))
    images = torch.rand(2, 1, 8, 8)
    want = pwoa_cli.load(run / "model.safetensors")(images)
    assert torch.equal(pwoa_cli.load(run)(images), want)
    assert torch.equal(pwoa_cli.load(str(run))(images), want)
    assert pwoa_cli.load_state_dict(run).keys() == pwoa_cli.load_state_dict("pruned.safetensors").keys()
    Path("empty").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        pwoa_cli.load("empty")


def test_the_example_runs(here, capfd):
    file = Path(pwoa_cli.__file__).parents[1] / "examples/api.py"
    spec = importlib.util.spec_from_file_location("api_example", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main("model.pt", "tiny.npz", eps=0.5, samples=20, **QUICK)
    out, _ = capfd.readouterr()
    assert "worst case" in out and "parameters are not zero" in out
