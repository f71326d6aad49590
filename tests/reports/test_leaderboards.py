"""What is published of figures: only plain ones, from one place each, in the words of RobustBench and of the
Adversarial Pruning Benchmark; what is missing is null and said."""
import json
import math
from fractions import Fraction

import pytest
from helpers import report_samples

from pwoa_cli.evaluation.words import WORST
from pwoa_cli.files.plain import dumps
from pwoa_cli.reports import leaderboards
from pwoa_cli.reports.leaderboards import Measurement, Model, Told

R18 = {"arch": "cifar-resnet", "arch_options": {"blocks": [2, 2, 2, 2], "bottleneck": False}}
ALL = Told("A title", "A. Author", "https://arxiv.org/abs/1", "mit", False)


def score(accuracy, n=10_000, **more):
    return {"accuracy": accuracy, "n": n, "ci95": [accuracy, accuracy]} | more


def model(scores=None, *, target=0.9, net=R18, data="cifar10", structure="unstructured", eps=8 / 255, **more):
    """A ResNet-18 on CIFAR-10; scores: of measurements by label."""
    found = report_samples.report(eps=eps, structure=structure, data=report_samples.DATA | {"name": data})
    found["model"] |= net
    found["sparsity"] |= {"achieved": target}
    measured = [Measurement(label, "pruned", one, 0) for label, one in (scores or {}).items()]
    return Model(f"r18-{target}", f"runs/r18-{target}", found, measured, **more)


WHOLE = {"run": {"clean": score(0.84, 1000), "pgd-20": score(0.5, 1000), WORST: score(0.5, 1000)},
         "eval": {"clean": score(0.8334), "aa": score(0.4539, attacked=8334), "fmn": score(0.46),
                  WORST: score(0.45)}}


def test_the_entry_of_robustbench_has_its_fields_as_it_writes_them():
    assert leaderboards.robustbench(model(WHOLE), ALL) == {
        "link": "https://arxiv.org/abs/1", "name": "A title", "authors": "A. Author",
        "additional_data": False, "number_forward_passes": 1, "dataset": "cifar10",
        "architecture": "ResNet-18", "eps": "8/255", "clean_acc": "83.34", "autoattack_acc": "45.39",
        "footnote": "Compressed model"}


def test_what_is_missing_is_null_and_said():
    made = model({"run": WHOLE["run"]})
    entry = leaderboards.robustbench(made, Told())
    assert [key for key, value in entry.items() if value is None] == [
        "link", "name", "authors", "additional_data", "autoattack_acc"]
    assert entry["clean_acc"] == "84.00" and entry["footnote"].endswith("; measured on 1000 test images")
    said = "\n".join(leaderboards.notes([made], Told()))
    for words in ("licence", "--name, --authors, --link, --additional-data",
                  "r18-0.9: nobody measured AutoAttack (aa) and FMN with its distances (fmn)"):
        assert words in said
    assert leaderboards.lacks(made) == ["aa", "fmn"]
    assert leaderboards.lacks(model(WHOLE)) == ["fmn"], "its figure is there, its distances are not"
    assert leaderboards.lacks(model(WHOLE, distances=[0.1])) == []


@pytest.mark.parametrize("doubts", [(), ("evaluations/1.json: gradients are masked",)])
def test_a_figure_in_doubt_is_none(doubts):
    made = model(WHOLE, doubts=doubts, distances=[0.1] * 3)
    entry, checkpoint = leaderboards.robustbench(made, ALL), leaderboards.benchmark([made])["models"][0]
    given = [entry["clean_acc"], entry["autoattack_acc"], *(checkpoint[k] for k in ("clean", "autoattack",
                                                                                     "fmn"))]
    assert all(given) if not doubts else not any(given)
    assert bool(made.figures()) == (not doubts)
    assert any("masked" in sentence for sentence in leaderboards.notes([made], ALL)) == bool(doubts)


def test_each_figure_is_of_the_most_samples_and_of_several_the_lowest():
    figures = model(WHOLE).figures()
    assert {name: (s["accuracy"], m.where) for name, (s, m) in figures.items()} == {
        "clean": (0.8334, "eval"), "pgd-20": (0.5, "run"), "aa": (0.4539, "eval"), "fmn": (0.46, "eval"),
        WORST: (0.45, "eval")}
    again = {"a": {"clean": score(0.9, 100), WORST: score(0.5, 100)},
             "b": {"clean": score(0.9, 100), WORST: score(0.4, 100)}}
    assert model(again).figures()[WORST][1].where == "b"


def test_a_worst_case_that_is_not_the_worst_is_left_out():
    scores = {"run": WHOLE["run"], "eval": {"clean": score(0.84, 100), "aa": score(0.4, 100)}}
    assert WORST not in model(scores).figures() and model(scores).figures()["aa"][0]["accuracy"] == 0.4


def test_clean_accuracy_is_of_the_samples_that_autoattack_had():
    scores = {"run": {"clean": score(0.9, 1000)}, "eval": {"clean": score(0.8, 200), "aa": score(0.4, 200)}}
    entry = leaderboards.robustbench(model(scores), ALL)
    assert entry["clean_acc"] == "80.00"
    assert entry["footnote"] == "Compressed model; measured on 200 test images"
    assert any("measures 10000 test images" in one for one in leaderboards.notes([model(scores)], ALL))


def test_clean_accuracy_of_the_benchmark_is_of_the_samples_that_autoattack_had():
    scores = {"run": {"clean": score(0.9, 1000)}, "eval": {"clean": score(0.8, 200), "aa": score(0.4, 200)}}
    one, = leaderboards.benchmark([model(scores)])["models"]
    assert one["clean"] == {"accuracy": "80.00", "samples": 200}
    assert leaderboards.benchmark([model()])["models"][0]["clean"] is None


def test_imagenet_is_robustbenchs_by_its_name():
    made = model({"eval": {"clean": score(0.6, 5000), "aa": score(0.3, 5000)}}, data="imagenet",
                 net={"arch": "resnet50"})
    assert leaderboards.robustbench(made, ALL)["footnote"] == "Compressed model"
    assert not any("RobustBench" in sentence for sentence in leaderboards.notes([made], ALL))


@pytest.mark.parametrize(("attacked", "told"), [(8334, False), (5000, True)])
def test_autoattack_behind_cheaper_attacks_says_so(attacked, told):
    """`strong` comes after it."""
    scores = {"eval": WHOLE["eval"] | {"aa": score(0.45, attacked=attacked), "strong": score(0.44)}}
    said = [one for one in leaderboards.notes([model(scores)], ALL) if "counts what fmn broke" in one]
    assert bool(said) == told


@pytest.mark.parametrize(("arch", "options", "name"), [
    ("cifar-resnet", {"blocks": [2, 2, 2, 2]}, "ResNet-18"),
    ("cifar-resnet", {"blocks": [3, 4, 6, 3], "bottleneck": True}, "ResNet-50"),
    ("cifar-resnet", {"blocks": [3, 3, 3]}, "ResNet-20"),
    ("dm-preact-resnet", {"blocks": [2, 2, 2, 2]}, "PreActResNet-18"),
    ("wide-resnet", {"blocks": [4, 4, 4], "widths": [160, 320, 640]}, "WideResNet-28-10"),
    ("cifar-vgg", {"stages": [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3]}, "VGG-16"),
    ("resnet50", {}, "ResNet-50"), ("/home/me/net.py:fn", {}, "net.py:fn"), ("lenet5", {}, "lenet5"),
    ("cifar-resnet", {}, "cifar-resnet"), ("wide-resnet", {"blocks": "x", "widths": 3}, "wide-resnet"),
    ("cifar-vgg", {"stages": 3}, "cifar-vgg")])
def test_architectures_are_called_what_leaderboards_call_them(arch, options, name):
    assert model(net={"arch": arch, "arch_options": options}).architecture == name


def test_the_benchmark_gets_three_sparsities_with_keys_and_distances():
    far = math.inf
    made = [model(WHOLE, target=target, distances=[0.0, 0.02, 0.04, far]) for target in (0.9, 0.95, 0.99)]
    entry = leaderboards.benchmark(made)
    assert entry["ap_key"] is None and [one["model_key"] for one in entry["models"]] == [
        f"AP_KEY_R18_CIFAR10_US_{percent}" for percent in (90, 95, 99)]
    assert entry["models"][0] == {
        "model_key": "AP_KEY_R18_CIFAR10_US_90", "architecture": "ResNet-18", "dataset": "cifar10",
        "structure": "weights", "sparsity": "90", "norm": "linf", "eps": "8/255", "model_sha256": None,
        "clean": {"accuracy": "83.34", "samples": 10_000},
        "autoattack": {"accuracy": "45.39", "samples": 10_000},
        "fmn": {"attack": "fmn", "accuracy": "46.00", "samples": 10_000,
                "median_distance": float(Fraction(3, 100)),
                "distances": "distances/AP_KEY_R18_CIFAR10_US_90.pickle"}}
    assert not any("asks for 90" in sentence for sentence in leaderboards.notes(made, ALL))
    two = leaderboards.notes(made[:2], ALL)
    assert any("asks for 90, 95, 99% sparsity, and there is 90, 95%" in sentence for sentence in two)


def test_a_median_beyond_all_that_was_found_is_null():
    made = leaderboards.benchmark([model(WHOLE, distances=[math.inf, math.inf, 0.1])])
    assert json.loads(dumps(made))["models"][0]["fmn"]["median_distance"] is None


@pytest.mark.parametrize(("changes", "key"), [
    ({"structure": "filter", "target": 0.5}, "AP_KEY_R18_CIFAR10_S_50"),
    ({"structure": "channel", "target": 0.7513}, "AP_KEY_R18_CIFAR10_S_75"),
    ({"target": 0.5}, None), ({"structure": "n:m", "target": 0.5}, None), ({"data": "mnist"}, None),
    ({"net": {"arch": "lenet5"}}, None), ({"data": "svhn", "target": 0.99}, "AP_KEY_R18_SVHN_US_99")])
def test_what_the_benchmark_does_not_take_has_no_key(changes, key):
    made = model(**changes)
    assert leaderboards.model_key(made) == key
    assert leaderboards.distances_file(made).startswith("distances/")


def test_another_threat_than_theirs_is_said():
    said = "\n".join(leaderboards.notes([model(eps=0.1)], ALL))
    assert "measures within linf eps 8/255, and this is within linf eps 0.1" in said
    said = "\n".join(leaderboards.notes([model(data="mnist")], ALL))
    assert "RobustBench takes cifar10, cifar100, imagenet by these names" in said
    assert "linf and l2: this is mnist, linf." in said
    assert "this is ResNet-18 on mnist, unstructured" in said


@pytest.mark.parametrize(("names", "best"), [
    (["fmn"], "fmn"), (["fmn", "fmn-200"], "fmn-200"), (["fmn-50", "fmn"], "fmn"), (["fmn-paper"], None)])
def test_the_minimum_norm_attack_is_the_one_with_the_most_steps(names, best):
    assert model({"eval": {name: score(0.5) for name in names}}).fmn == best


def test_autoattack_is_asked_for_where_there_are_classes_enough():
    made = model({"run": WHOLE["run"]}, net=R18 | {"num_classes": 2})
    assert leaderboards.lacks(made) == ["fmn"]
    assert leaderboards.robustbench(made, ALL)["autoattack_acc"] is None
    assert any("AutoAttack needs 4 classes" in sentence for sentence in leaderboards.notes([made], ALL))
