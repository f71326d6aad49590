"""Whatever stands in a file, its reader reads it or says one sentence: mutants of every kind of file.

A small number here; `make fuzz` asks for 10,000 of each (PWOA_FUZZ).
"""
import gzip
import json
import os
import pickle
import shutil
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import scipy.io
import torch
from helpers import fuzz, report_folders, report_samples, small_models
from helpers.data_files import digits, idx_bytes, pixels, write_folder, write_npz
from PIL import Image
from safetensors.torch import save_file

from pwoa_cli.checkpoints.metadata import to_metadata
from pwoa_cli.checkpoints.model import load_model
from pwoa_cli.checkpoints.state_dict import read_state_dict
from pwoa_cli.cli import replay
from pwoa_cli.data import classes, formats
from pwoa_cli.data.choices import of_report
from pwoa_cli.data.image_folder import read_image_folder
from pwoa_cli.evaluation import sample_file
from pwoa_cli.evaluation.units import Unfinished, Unit
from pwoa_cli.files import sparse
from pwoa_cli.files.hashes import file_sha256
from pwoa_cli.files.metrics import read_metrics
from pwoa_cli.files.plain import dumps, write_toml
from pwoa_cli.reports import gates, plots, runs, schema, tables, terminal
from pwoa_cli.training.recipe import read_recipe, text_of
from pwoa_cli.workflows import card

COUNT = int(os.environ.get("PWOA_FUZZ", 100))
STATE = {"a.weight": torch.arange(16.0).reshape(4, 4), "b.weight": torch.eye(8), "n": torch.tensor(3)}


# --- a file of each kind, and what reads it: folder -> (file, reader, mutator) -------------------------

def _torch_file(folder, *, new):
    extra = {"args": {"eps": 0.3, "norm": "linf"}, "log": np.arange(4.0), "epoch": 3}
    torch.save({"model": STATE} | extra, folder / "m.pt", _use_new_zipfile_serialization=new)
    return folder / "m.pt", read_state_dict, fuzz.of_zip if new else fuzz.of_bytes


def _dense(folder):
    save_file(STATE, folder / "m.safetensors", metadata={"format": "pt"})
    return folder / "m.safetensors", read_state_dict, fuzz.of_safetensors


def _pruned(folder):
    net = small_models.lenet()
    for p in net.parameters():
        p.data[p.data.abs() < p.data.abs().median()] = 0
    torch.save(net.state_dict(), folder / "m.pt")
    loaded = load_model(str(folder / "m.pt"))
    sparse.save(net.state_dict(), folder / "m.safetensors", metadata=to_metadata(loaded))
    return folder / "m.safetensors", lambda path: load_model(str(path)), fuzz.of_safetensors


def _shards(folder):
    keys = list(STATE)
    places = {key: f"m-0000{i}-of-00002.safetensors" for key, i in zip(keys, (1, 1, 2), strict=True)}
    for name in set(places.values()):
        save_file({k: STATE[k] for k in keys if places[k] == name}, folder / name)
    (folder / "m.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder / "m.safetensors.index.json", read_state_dict, fuzz.of_json


def _npz(folder):
    return write_npz(folder / "d.npz"), formats.read_npz, fuzz.of_zip


def _idx(folder, *, ending):
    arrays = pixels(3, 6, 6), digits(3), pixels(2, 6, 6), digits(2)
    for name, array in zip(formats.IDX_FILES, arrays, strict=True):
        (folder / f"{name}{ending}").write_bytes((gzip.compress if ending else bytes)(idx_bytes(array)))
    return (folder / f"t10k-images-idx3-ubyte{ending}", lambda path: formats.read_idx(path.parent),
            fuzz.of_gzip if ending else fuzz.of_bytes)


def _cifar(folder, *, protocol):
    batch = {b"batch_label": b"b", "fine_labels": digits(2).tolist(), "data": pixels(2, 3072),
             "filenames": [b"a.png"]}
    for name in formats.CIFAR100_FILES:
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return folder / "test", lambda path: formats.read_cifar100(path.parent), fuzz.of_bytes


def _svhn(folder, *, packed):
    for name in formats.SVHN_FILES:
        scipy.io.savemat(folder / name, {"X": pixels(32, 32, 3, 2), "y": digits(2)[:, None] + 1},
                         do_compression=packed)
    return folder / "train_32x32.mat", lambda path: formats.read_svhn(path.parent), fuzz.of_bytes


def _pictures(folder, *, ending):
    write_folder(folder)
    path = folder / "test" / "cat" / "0.png"
    Image.open(path).save(path.with_suffix(ending))
    if ending != ".png":
        path.unlink()

    def read(_):
        raw = read_image_folder(folder).raw
        raw.x_test[torch.arange(len(raw.x_test))]

    return path.with_suffix(ending), read, fuzz.of_png


def _recipe(folder):
    (folder / "mine.toml").write_text(text_of("default"))

    def read(path):
        for data in (None, "mnist"):
            read_recipe(str(path), data=data)

    return folder / "mine.toml", read, fuzz.of_text


def _config(folder):
    write_toml(folder / "config.toml", {"sha256": "0" * 64, "command": {
        "model": "a.pt", "sparsity": "0.9", "settings": ["lr=1e-3"], "n": 100}, "recipe": {"epochs": 3.0}})
    return folder / "config.toml", replay._read, fuzz.of_text


def _show(found):
    """As pwoa report shows and judges it."""
    terminal.one(found)
    scores = [name for column in tables.columns(found).values() for name in column]
    asked = gates.parse("min", ["clean=0.5"]) + gates.parse("max-drop", ["clean=1"] * ("drop" in found))
    attacks = {name: name for name in scores if name != "clean"}
    gates.judged(found, gates.resolved(asked, attacks, compared="drop" in found))
    return tables.markdown(found), tables.only_guesses(found), tables.falls_short(found)


def _report(folder):
    finding = {"check": "near-chance", "unreliable": True, "text": "t", "models": ["pruned"]}
    made = report_samples.report(findings=[finding], attacks=["pgd-10", "aa"], command={"model": "a.pt"},
                                 data=report_samples.DATA | {"argument": "d", "choices": {
                                     "image_size": [32, 32], "class_map": "m.csv", "labels_from": 1}})
    (folder / "run").mkdir()
    (folder / "run" / "model.safetensors").write_bytes(b"")
    (folder / "run" / "report.json").write_text(dumps(made))

    def read(path):
        runs.markdown(runs.listed(folder))
        found = schema.read(path)
        _show(found)
        of_report(found["data"].get("choices", {}))

    return folder / "run" / "report.json", read, fuzz.of_json


def _evaluation(folder):
    s = report_samples.score(0.5, 0.4, 0.6, 10) | {"forwards": 3, "backwards": 4}
    made = report_samples.evaluation(
        results={"clean": s, "aa": s}, teacher={"clean": s, "aa": s}, headings=("a", "b"),
        drop={"clean": {"points": 1.0, "ci95": [0, 1], "lost": 3, "won": 1, "p": 0.1}}, attacks=["aa"],
        unfinished={"a": {"cw": {"n": 3, "of": 10}}, "b": {}},
        models={who: {"source": who, "sha256": "0", "arch": "a"} for who in "ab"},
        classes={"b": {"clean": {"0": s, "1": s}, "aa": {"0": s}}},
        findings=[{"check": "rounding", "unreliable": False, "text": "t", "models": []}])
    (folder / "report.json").write_text(dumps(made))
    return folder / "report.json", lambda path: _show(schema.read(path)), fuzz.of_json


def _card(folder, *, of):
    """A run with an evaluation in its folder, as a card takes them."""
    s = report_samples.score(0.5, 0.4, 0.6, 4)
    run, inside = folder / "run", folder / "run" / "eval"
    inside.mkdir(parents=True)
    (run / "model.safetensors").write_bytes(b"")
    sha256 = file_sha256(run / "model.safetensors")
    model = {"source": "a.pt", "sha256": "0" * 64, "arch": "cifar-resnet", "num_classes": 10,
             "file_sha256": sha256, "arch_options": {"blocks": [2, 2, 2, 2]}}
    evaluation = report_samples.evaluation(
        eps=0.3, results={"clean": s, "aa": s, "fmn": s}, attacks=["aa", "fmn"],
        models={"model": {"source": "m", "sha256": sha256, "arch": "a"}},
        findings=[{"check": "rounding", "unreliable": False, "text": "t", "models": []}])
    (run / "report.json").write_text(dumps(report_samples.report(model=model)))
    (inside / "report.json").write_text(dumps(evaluation))
    np.savez(inside / "samples.npz", **{f"model/{what}/{name}": np.ones(4, float) for name in ("clean", "fmn")
                                        for what in ("correct", "distance")})

    def read(path):
        job = card.prepare(card.Request([str(run)], folder / "card"), say=lambda text: None)
        card.execute(job)
        shutil.rmtree(folder / "card")

    return run / of, read, fuzz.of_zip if of.endswith("npz") else fuzz.of_json


def _samples(folder):
    np.savez_compressed(folder / "s.npz", index=np.arange(3), label=np.arange(3),
                        **{"model/correct/clean": np.ones(3, bool),
                           "model/broken_by": np.array(["", "a", "b"])})
    return folder / "s.npz", sample_file.read, fuzz.of_zip


def _beside(folder, *, name, mutate):
    """What lies beside a run, as the page of pwoa report shows it; matplotlib draws nothing here, to be
    quick."""
    run = report_folders.run_at(folder / "run")

    def read(_):
        with mock.patch.object(plots, "_svg", lambda draw, **said: ""):
            report_folders.html(run)

    return run / name, read, mutate


def _part(folder):
    rows, kept = torch.arange(3), Unfinished(folder, reuse=True)
    unit = Unit(rows, torch.tensor([True, False, True]), torch.tensor([0.1, torch.nan, 0.2]), 1, 2, 30, 40,
                0.5, torch.rand(2, 1, 2, 2))
    kept.put("aa", unit)

    def read(path):
        found = kept.get("aa", rows, inputs=True)
        if found is not None:
            assert (found.broken.dtype, found.distance.dtype) == (torch.bool, torch.float32)
            assert found.inputs.shape == (int(found.broken.sum()), 1, 2, 2)
            assert found.inputs.dtype == torch.float32
            assert torch.equal(found.rows, rows) and found.seconds >= 0

    return next(folder.glob("*.npz")), read, fuzz.of_zip


def _metrics(folder):
    lines = [dumps({"step": i, "loss": 0.5, "phase": "a"}) for i in range(4)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "metrics.jsonl", read_metrics, fuzz.of_text


def _class_map(folder, *, ending):
    text = {".json": '{"cat": 0, "dog": 1, "bird": 12}',
            ".csv": "folder,class\ncat,0\n\"dog\",1\nbird,12\n"}[ending]
    (folder / f"map{ending}").write_text(text)
    return folder / f"map{ending}", classes.read_map, fuzz.of_text


READERS = {
    "torch zip": partial(_torch_file, new=True), "torch legacy": partial(_torch_file, new=False),
    "safetensors": _dense, "pruned file": _pruned, "index of shards": _shards, "npz": _npz,
    "idx": partial(_idx, ending=""), "idx.gz": partial(_idx, ending=".gz"),
    "cifar protocol 2": partial(_cifar, protocol=2), "cifar protocol 5": partial(_cifar, protocol=5),
    "mat": partial(_svhn, packed=False), "packed mat": partial(_svhn, packed=True),
    **{f"picture{ending}": partial(_pictures, ending=ending)
       for ending in (".png", ".jpg", ".bmp", ".tiff", ".webp", ".ppm")},
    "recipe": _recipe, "config": _config, "report": _report, "evaluation": _evaluation,
    "card's run": partial(_card, of="report.json"),
    "card's evaluation": partial(_card, of="eval/report.json"),
    "card's samples": partial(_card, of="eval/samples.npz"), "samples": _samples,
    "page of a run": partial(_beside, name="report.json", mutate=fuzz.of_json),
    "evaluation of a page": partial(_beside, name="eval/report.json", mutate=fuzz.of_json),
    "samples of a page": partial(_beside, name="eval/samples.npz", mutate=fuzz.of_zip),
    "times of a page": partial(_beside, name="bench.json", mutate=fuzz.of_json),
    "kept part": _part, "metrics": _metrics, "class map": partial(_class_map, ending=".csv"),
    "class map in JSON": partial(_class_map, ending=".json")}


@contextmanager
def _own(folder):
    """A new folder, the whole of it made again after the test."""
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", READERS)
def test_every_mutant_is_read_or_refused_in_a_sentence(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    with _own(tmp_path / "files") as folder:
        path, read, mutate = READERS[kind](folder)
        read(Path(path))  # whole
        found = fuzz.fuzz(read, Path(path), Path(path).read_bytes(), mutate, count=COUNT)
    print(f"FUZZ {kind}: {dict(found)}")
    assert not found.faults, f"{len(found.faults)} of {COUNT}: {dict(list(found.faults.items())[:8])}"
