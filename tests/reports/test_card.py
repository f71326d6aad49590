"""A model card is what the hub's library reads again, and texts of others in it are text."""
import pytest
from helpers import report_samples
from helpers.nasty_texts import NASTY, flat, rendered
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

from pwoa_cli.evaluation.words import WORST
from pwoa_cli.reports import card
from pwoa_cli.reports.leaderboards import Measurement, Model, Told

AA = report_samples.score(0.82, 0.76, 0.87, 200)
SCORES = {"clean": report_samples.score(0.987, 0.9779, 0.9924), "aa": AA, WORST: AA}


def model(*, name="lenet-0.9", scores=SCORES, doubts=(), **changes):
    found = report_samples.report(**changes)
    return Model(name, "runs/lenet-0.9", found, [Measurement("report.json", "pruned", scores, 0)], doubts)


def read(made, told=None, notes=()):
    """The card of a model, as the hub's library reads it from a file, offline."""
    text = card.readme(made, told or Told(), sha256="ab" * 32, size_bytes=240_000, notes=notes)
    with open("README.md", "w", encoding="utf-8") as file:
        file.write(text)
    return ModelCard.load("README.md")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *words: pytest.fail("asks the network"))


def test_the_hub_reads_each_figure_with_its_attack_eps_and_samples():
    made = read(model(), Told(license="mit"))
    assert made.data.model_name == "lenet-0.9" and made.data.license == "mit"
    assert made.data.datasets == ["ylecun/mnist"] and made.data.pipeline_tag == "image-classification"
    clean, aa, worst = made.data.eval_results
    assert (clean.metric_name, clean.metric_value, clean.metric_type) == ("clean accuracy", 0.987, "accuracy")
    assert clean.metric_args == {"samples": 1000, "seed": 0, "ci95": [0.9779, 0.9924]}
    assert aa.metric_value == 0.82 and aa.metric_args == {
        "attack": "aa", "norm": "linf", "eps": 0.3, "samples": 200, "seed": 0, "ci95": [0.76, 0.87]}
    assert worst.metric_args["attack"] == "aa"
    assert {r.dataset_type for r in made.data.eval_results} == {"ylecun/mnist"}
    index, = metadata_load("README.md")["model-index"]
    assert [m["value"] for m in index["results"][0]["metrics"]] == [0.987, 0.82, 0.82]


def test_the_page_says_threat_teacher_and_checksum():
    text = read(model()).text
    for words in ("| aa | 82.0 [76.0, 87.0] | 200 | report.json |", "within linf eps 0.3", "lenet.pt",
                  "ab" * 32, "# lenet-0.9", "TO BE FILLED IN: the licence"):
        assert words in text
    assert "/a/b" not in text, "folders of the machine stay out"


@pytest.mark.parametrize(("text", "fields"), [
    (None, {"license": "unknown"}), ("MIT", {"license": "mit"}), ("apache-2.0", {"license": "apache-2.0"}),
    ("Our Own: v2", {"license": "other", "license_name": "Our Own: v2"})])
def test_a_licence_is_one_of_the_hubs_or_other_with_a_name(text, fields):
    made = read(model(), Told(license=text)).data.to_dict()
    assert {key: made.get(key) for key in ("license", "license_name") if key in made} == fields


def test_authors_and_link_are_on_the_page():
    text = read(model(), Told(authors="Ada *L*", link="https://arxiv.org/abs/1")).text
    assert "- authors: Ada \\*L\\*\n" in text and "- link: https:\\//arxiv.org/abs/1\n" in text
    assert "authors" not in read(model()).text


def test_no_figure_in_doubt_is_in_the_card():
    made = read(model(doubts=["gradients are masked"]))
    assert made.data.eval_results is None and "model-index" not in made.data.to_dict()
    assert "| aa |" not in made.text and "gradients are masked" in made.text


@pytest.mark.parametrize(("source", "name"), [
    ("hf-hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"), ("timm:resnet18", None), ("a/b.pt", None)])
def test_the_base_model_is_the_one_on_the_hub(source, name):
    changes = {"model": {"source": source, "sha256": "0" * 64, "arch": "resnet18", "num_classes": 10}}
    assert read(model(**changes)).data.base_model == name


def test_data_of_the_users_is_not_the_hubs():
    data = report_samples.DATA | {"argument": "./mnist.npz"}
    made = read(model(data=data)).data
    assert made.datasets is None and made.eval_results[0].dataset_type == "mnist"


@pytest.mark.parametrize("kind", NASTY)
def test_texts_of_others_are_text(kind):
    """In YAML: read again, each is itself on one line. In Markdown: rendered, nothing but text."""
    nasty = NASTY[kind]
    made = model(name=nasty, scores=SCORES | {nasty: report_samples.score(0.5, 0.4, 0.6)},
                 model={"source": nasty, "sha256": nasty, "arch": nasty, "num_classes": 10},
                 data=report_samples.DATA | {"name": nasty, "images": nasty},
                 recipe={"name": nasty, "method": nasty, "epochs": nasty}, structure=nasty,
                 environment=report_samples.ENVIRONMENT | {"pwoa": nasty, "torch": nasty, "device": nasty},
                 findings=[{"check": "x", "unreliable": False, "text": nasty, "models": ["pruned"]}])
    found = read(made, Told(name=nasty, license=nasty), notes=[nasty])
    assert found.data.model_name == found.data.license_name == flat(nasty)
    robust = [r.metric_name for r in found.data.eval_results]
    assert f"robust accuracy ({flat(nasty)})" in [" ".join(name.split()) for name in robust]
    page, code, _ = found.text.split("```", 2)[0], found.text.split("```")[1], None
    assert "pwoa_cli.load" in code
    assert any(flat(nasty) in block for block in rendered(page))
    assert any(flat(nasty) in block for block in rendered(found.text.split("```")[-1]))


def test_a_network_of_the_users_own_code_says_that_it_needs_it():
    own = {"source": "a.pt", "sha256": "0" * 64, "arch": "/home/me/net.py:fn", "num_classes": 10}
    text = read(model(model=own)).text
    assert 'arch="FILE.py:FUNCTION"' in text and "/home/me" not in text
