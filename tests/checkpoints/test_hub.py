"""timm:NAME and hf-hub:ID, from a cache laid out as huggingface_hub does; nothing is downloaded here."""
import contextlib
import json
import logging
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants

from pwoa_cli.checkpoints import hub, protocol
from pwoa_cli.checkpoints.metadata import to_metadata
from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.data.pictures import Framing
from pwoa_cli.errors import InputError
from pwoa_cli.files import sparse
from pwoa_cli.files.hashes import state_sha256
from pwoa_cli.workflows import evaluate, export, prune, setup
from pwoa_cli.workflows.prune_job import prepare
from pwoa_cli.workflows.prune_request import Request

NAME = "test_resnet.r160_in1k"  # the smallest of timm that has released weights


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with one released model of timm and one of somebody's own; returns the folder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    torch.manual_seed(0)
    for repo, options in ((f"timm/{NAME}", {}), ("someone/robust", {"num_classes": 7, "in_chans": 1})):
        net = timm.create_model("test_resnet", **options)
        folder = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text("abc")
        (folder / "snapshots/abc").mkdir(parents=True)
        safetensors.torch.save_file(net.state_dict(), folder / "snapshots/abc/model.safetensors")
        (folder / "snapshots/abc/config.json").write_text(json.dumps({
            "architecture": "test_resnet", "num_classes": options.get("num_classes", 1000),
            "model_args": {"in_chans": 1} if options else {},
            "pretrained_cfg": {"input_size": [1 if options else 3, 96, 96],
                               "mean": [0.25] if options else [0.485, 0.456, 0.406],
                               "std": [0.5] if options else [0.229, 0.224, 0.225],
                               "num_classes": options.get("num_classes", 1000), "first_conv": "conv1.0",
                               "classifier": "fc"}}))
    return tmp_path / "hub"


def refused(source):
    with pytest.raises(InputError) as caught:
        load_model(source if isinstance(source, Source) else Source(source))
    assert caught.value.hint and "\n" not in caught.value.message
    return caught.value.message


def weights(cache, repo):
    folder = cache / f"models--{repo.replace('/', '--')}" / "snapshots/abc"
    return safetensors.torch.load_file(folder / "model.safetensors")


def test_released_weights_of_timm_by_name(cache):
    loaded = load_model(f"timm:{NAME}")
    assert (loaded.arch, loaded.arch_options, loaded.num_classes) == (
        "timm:test_resnet", {"num_classes": 1000}, 1000)
    assert loaded.normalisation.said_by == "library" and loaded.default_size == (160, 160)
    assert loaded.mean == tuple(timm.get_pretrained_cfg(NAME).mean)
    expected = weights(cache, f"timm/{NAME}")
    assert all(torch.equal(t, expected[k]) for k, t in loaded.model.net.state_dict().items())


def test_a_model_of_the_hub_and_its_pruned_file(cache, tmp_path):
    loaded = load_model("hf-hub:someone/robust")
    assert loaded.arch == "timm:test_resnet" and loaded.num_classes == 7 and loaded.mean == (0.25,)
    assert loaded.arch_options == {"num_classes": 7, "in_chans": 1} and loaded.default_size == (96, 96)
    x = torch.rand(2, 1, 96, 96)
    net = timm.create_model("test_resnet", num_classes=7, in_chans=1).eval()
    net.load_state_dict(weights(cache, "someone/robust"))
    torch.testing.assert_close(loaded.model(x), net((x - 0.25) / 0.5))
    sparse.save(loaded.model.net.state_dict(), tmp_path / "p.safetensors", metadata=to_metadata(loaded))
    assert torch.equal(load_model(tmp_path / "p.safetensors").model(x), loaded.model(x))
    again = load_model("hf-hub:someone/robust")
    assert loaded.sha256 == state_sha256(loaded.model.net.state_dict()) == again.sha256


def test_without_a_network_the_cache_is_asked_alone(cache, monkeypatch):
    """The first refusal says it all: the hub's library makes no request, and finds what is in the cache."""
    def seen(*_, **__):
        told.append(constants.HF_HUB_OFFLINE)
        raise OSError("not there")

    told = []
    monkeypatch.setattr(hub, "_is_cut_off", lambda: True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with monkeypatch.context() as patch:
        patch.setattr(timm, "create_model", seen)
        with pytest.raises(InputError, match="its weights could not be had: not there"):
            hub.pretrained(f"timm:{NAME}")
    assert told == [True] and constants.HF_HUB_OFFLINE is False
    assert hub.pretrained(f"timm:{NAME}").state


@pytest.mark.parametrize(("proxies", "reached", "cut_off"), [
    ({}, True, False), ({}, False, True), ({"https": "http://proxy:3128"}, False, False)])
def test_whether_the_hub_can_be_reached(monkeypatch, proxies, reached, cut_off):
    class Socket:
        def __enter__(self):
            return self

        def __exit__(self, *_): ...

    def connect(address, timeout):
        assert address == ("huggingface.co", 443) and timeout <= 5
        if not reached:
            raise OSError
        return Socket()

    monkeypatch.setattr(hub, "getproxies", lambda: proxies)
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.setattr(hub.socket, "create_connection", connect)
    assert hub._is_cut_off() is cut_off


def test_what_cannot_be_had(cache):
    assert refused("timm:resnet9999") == f"timm:resnet9999 is no model of timm {timm.__version__}."
    assert "hf-hub:no/such: its weights could not be had: " in refused("hf-hub:no/such")
    assert "timm:resnet10t: its weights could not be had: " in refused("timm:resnet10t")
    named = Source("hf-hub:someone/robust", arch="resnet18")
    assert "--arch, --entry and --keep are for files" in refused(named)


def test_a_run_from_the_hub_is_measured_beside_its_teacher_if_asked(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 1)).astype(np.uint8)
    y = np.arange(40) % 7
    np.savez("noise.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    monkeypatch.setattr(setup, "is_near_chance", lambda reading, classes: False)  # its weights are random
    request = Request(Source("hf-hub:someone/robust"), sparsity=0.5, data="noise.npz", eps="0.1", n=14,
                      attacks="fgsm",
                      overrides={"epochs": "1", "batch_size": "20"})
    (tmp_path / "run").mkdir()
    job = prepare(request, say=lambda text: None)
    made = prune.execute(job, tmp_path / "run", say=lambda text: None, progress=lambda *_: None,
                         created=datetime(2026, 1, 2))
    prune.keep(tmp_path / "run", made)
    request = evaluate.Request(Source(str(tmp_path / "run")), attacks="fgsm", n=14)
    said = []
    with monkeypatch.context() as patch:  # a report may come from anybody
        patch.setattr(hub, "_create", lambda source: pytest.fail(f"{source} was fetched unasked"))
        assert list(evaluate.prepare(request, say=said.append).models) == ["model"]
    warning, = [line for line in said if line.startswith("warning: its teacher is hf-hub:someone/robust")]
    assert warning.endswith("(--compare hf-hub:someone/robust names it)")
    request = replace(request, teacher=Source("hf-hub:someone/robust"))
    again = evaluate.prepare(request, say=lambda text: None)
    measured = evaluate.execute(again, progress=lambda *_: None, say=lambda text: None).result
    assert list(again.models) == ["teacher", "pruned"]
    assert measured["teacher"] == made["teacher"] and measured["student"] == made["student"]


def test_pictures_are_framed_as_the_weights_were_published(cache):
    """Without crop_pct and interpolation in a config, timm takes 0.875 and bicubic."""
    made = protocol.framing_of(load_model("hf-hub:someone/robust"))
    assert made == Framing((96, 96), (109, 109), "bicubic", by="as published: timm on hf-hub:someone/robust")
    config = timm.get_pretrained_cfg(NAME)
    made = protocol.framing_of(load_model(f"timm:{NAME}"))
    assert made.scaled[0] == int(160 / config.crop_pct) and made.interpolation == config.interpolation


def written(loaded, path, **changes):
    """The file that is pruned from it, as a model."""
    said = to_metadata(loaded) | {"source": Path(loaded.source).name, "source_sha256": loaded.sha256}
    said = {key: text for key, text in (said | changes).items() if text is not None}
    sparse.save(loaded.model.net.state_dict(), path, metadata=said)
    return load_model(path)


@pytest.mark.parametrize("name", ["hf-hub:someone/robust", f"timm:{NAME}"])
def test_a_pruned_file_says_how_pictures_were_framed_and_nothing_is_fetched(cache, tmp_path, monkeypatch,
                                                                            name):
    loaded = load_model(name)
    made = protocol.framing_of(loaded)
    monkeypatch.setattr(timm.models, "load_model_config_from_hf", lambda *_: pytest.fail("fetched unasked"))
    again = written(loaded, tmp_path / "once.safetensors")
    assert protocol.framing_of(again) == made and protocol.is_published(made)
    twice = written(again, tmp_path / "twice.safetensors")  # from a file that names no weights
    assert protocol.framing_of(twice) == made
    export.execute(export.prepare(export.Request(Source(name), "sparse", tmp_path / "own.safetensors"),
                                  say=lambda text: None), progress=lambda *_: None, say=lambda text: None)
    assert protocol.framing_of(load_model(tmp_path / "own.safetensors")) == made


def test_a_pruned_file_without_a_framing_is_read_as_before(cache, tmp_path, monkeypatch):
    """By what timm's own list says of a name; what is not found is said, with what is used."""
    loaded = load_model(f"timm:{NAME}")
    monkeypatch.setattr(timm.models, "load_model_config_from_hf", lambda *_: pytest.fail("fetched unasked"))
    old = written(loaded, tmp_path / "old.safetensors", framing=None)
    assert protocol.framing_of(old) == protocol.framing_of(loaded)
    for source, words in (("robust", "the size of timm:test_resnet"), *(
            (name, f"the size of timm:test_resnet; how pictures were framed for {name} is not known")
            for name in ("hf-hub:someone/robust", "timm:of_tomorrow"))):
        other = written(loaded, tmp_path / "other.safetensors", framing=None, source=source)
        assert protocol.framing_of(other) == Framing((160, 160), (183, 183), by=words)


@pytest.mark.parametrize("changes", [
    {"size": [96]}, {"size": [96, 96.5]}, {"size": [True, 96]}, {"scaled": [0, 109]}, {"scaled": [9**6, 109]},
    {"interpolation": "magic"}, {"interpolation": ["bicubic"]}, {"squashed": 1}, {"by": None}, {"more": 1}])
def test_a_damaged_framing_is_named(cache, tmp_path, changes):
    loaded = load_model("hf-hub:someone/robust")
    fields = json.loads(to_metadata(loaded)["framing"])
    for text in (json.dumps(fields | changes), json.dumps([fields]), "{"):
        with pytest.raises(InputError, match="metadata field 'framing'") as caught:
            written(loaded, tmp_path / "p.safetensors", framing=text)
        assert caught.value.hint == "The file was changed after pwoa wrote it; prune again."


def test_a_framing_that_is_not_known_is_not_taken_from_the_hub(cache, tmp_path):
    file = cache / "models--someone--robust/snapshots/abc/config.json"
    config = json.loads(file.read_text())
    config["pretrained_cfg"]["interpolation"] = "magic"
    file.write_text(json.dumps(config))
    loaded = load_model("hf-hub:someone/robust")
    made = protocol.framing_of(loaded)
    assert made.interpolation == "bilinear" and made.by.endswith(
        "how pictures were framed for hf-hub:someone/robust is not known")
    assert protocol.framing_of(written(loaded, tmp_path / "p.safetensors")).size == made.size


@pytest.mark.parametrize("name", [f"timm:{NAME}", "hf-hub:someone/absent"])
def test_logging_is_afterwards_what_it_was(cache, name):
    try:
        logging.disable(logging.ERROR)
        with contextlib.suppress(InputError):
            hub.pretrained(name)
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(logging.NOTSET)
