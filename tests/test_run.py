"""Run folders, atomic files and the metrics log."""
import json
import math
import os
import shutil
import tomllib
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pwoa_cli import run
from pwoa_cli.errors import InputError

NOW = datetime(2026, 3, 4, 5, 6, 7)


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _create(out=None, **options) -> Path:
    return run.create(out, **{"model_name": "lenet", "sparsity": 0.9, "now": NOW} | options)


def _finish(path: Path, created: datetime | None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.safetensors").write_bytes(b"x")
    run.write_json(path / "report.json", {"created": created.isoformat()} if created else {})
    return path


def test_default_folder_says_model_sparsity_and_time_and_is_new_each_time():
    assert [str(_create()) for _ in range(3)] == [f"pwoa-runs/lenet-0.9-20260304-050607{again}" for again in ("", "-2", "-3")]


@pytest.mark.parametrize(("name", "start"), [("../../etc/x y[z]", "_.._etc_x_y_z_-0.9-"), ("-rf", "rf-0.9-"), ("", "model-0.9-"),
                                             ("é" * 300, "_-0.9-"), ("a" * 300, "a" * 60 + "-0.9-")])
def test_any_model_name_makes_one_folder_under_the_root(name, start):
    path = _create(model_name=name)
    assert path.parent == run.ROOT and path.is_dir() and path.name.startswith(start)


def test_named_folder_may_be_new_or_empty():
    assert _create(Path("a/b/c")).is_dir()
    assert _create(Path("a/b/c")) == Path("a/b/c")  # still empty
    assert list(Path("a/b/c").iterdir()) == []  # the writing test leaves nothing


def test_named_folder_with_content_is_refused_and_left_alone():
    Path("old").mkdir()
    Path("old/report.json").write_text("mine")
    with pytest.raises(InputError, match="old exists and is not empty") as caught:
        _create(Path("old"))
    assert "--out DIR" in caught.value.hint and caught.value.exit_code == 2
    assert Path("old/report.json").read_text() == "mine"


@pytest.mark.parametrize("out", ["file", "file/below/it", "/proc/pwoa", "x" * 300])
def test_places_that_cannot_hold_a_run(out):
    Path("file").write_text("in the way")
    with pytest.raises(InputError, match="output folder") as caught:
        _create(Path(out))
    assert out in caught.value.message and "--out DIR" in caught.value.hint


def test_a_file_named_like_the_root_is_in_the_way():
    Path("pwoa-runs").write_text("")
    with pytest.raises(InputError, match="output folder pwoa-runs cannot be written: Not a directory"):
        _create()
    with pytest.raises(InputError, match="cannot be read as a folder"):
        run.newest()


def test_full_disk_is_refused_before_work_and_leaves_no_folder(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    with pytest.raises(InputError, match="has 5 MB free, this run needs 70 MB"):
        _create(need_bytes=70_000_000)
    assert not run.ROOT.exists()
    Path("mine").mkdir()
    with pytest.raises(InputError):
        _create(Path("mine"))
    assert Path("mine").is_dir()  # was there before


def _opened(out=None, *, write=False):
    with run.opened(out, model_name="lenet", sparsity=0.9, now=NOW) as path:
        assert path.is_dir()
        if write:
            (path / "model.safetensors").write_bytes(b"x")
    return path


def test_an_opened_folder_stays_if_something_was_written():
    assert _opened(write=True).is_dir() and _opened(Path("a/b"), write=True).is_dir()
    assert not _opened().exists() and run.ROOT.is_dir()  # the other run is in there


def test_an_opened_folder_that_stays_empty_goes_with_the_parents_made_for_it():
    assert not _opened().exists() and not run.ROOT.exists()
    Path("mine").mkdir()
    _opened(Path("mine"))
    _opened(Path("mine/a/b"))
    assert Path("mine").is_dir() and not Path("mine/a").exists()  # mine was there before
    with pytest.raises(ValueError), run.opened(None, model_name="lenet", sparsity=0.9, now=NOW):
        raise ValueError
    with pytest.raises(InputError), run.opened(Path("x" * 300), model_name="lenet", sparsity=0.9, now=NOW):
        pass
    assert [p.name for p in Path().iterdir()] == ["mine"]


def test_newest_goes_by_time_not_by_name():
    _finish(run.ROOT / "zebra-0.9-20260101-000000", NOW)
    late = _finish(run.ROOT / "ant-0.9-20260102-000000", NOW + timedelta(days=1))
    _finish(run.ROOT / "mid-0.9-20260101-120000", NOW + timedelta(hours=5))
    (run.ROOT / "yak-0.9-20270101-000000").mkdir()  # unfinished
    assert run.newest() == late


def test_newest_reads_the_name_where_the_report_says_no_time():
    _finish(run.ROOT / "zebra-0.9-20260101-000000", None)
    _finish(run.ROOT / "ant-0.9-20260102-000000-9", None)
    last = _finish(run.ROOT / "ant-0.9-20260102-000000-10", None)
    assert run.newest() == last
    own_name = _finish(run.ROOT / "own-name", datetime(2026, 2, 1))  # --out pwoa-runs/own-name
    assert run.newest() == own_name


def test_newest_does_not_step_back_over_a_broken_report():
    _finish(run.ROOT / "a-0.9-20260101-000000", datetime(2026, 1, 1))
    broken = _finish(run.ROOT / "a-0.9-20260102-000000", None)
    (broken / "report.json").write_text("{")
    assert run.newest() == broken
    with pytest.raises(InputError, match="is not JSON"):
        run.read_json(broken / "report.json")


def test_no_finished_run():
    with pytest.raises(InputError, match="nothing there") as caught:
        run.newest()
    assert caught.value.hint.endswith("pwoa prune model.pt --sparsity 0.9")
    _create()
    with pytest.raises(InputError, match="1 unfinished there"):
        run.newest()


def test_a_write_that_fails_in_the_middle_leaves_the_old_file_and_no_other():
    target = Path("report.md")
    run.write_text_atomic(target, "old")
    with pytest.raises(KeyboardInterrupt), run.atomic(target) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    with pytest.raises(InputError, match="report.md cannot be written: No space left"), run.atomic(target) as temporary:
        temporary.write_text("half of the n")
        raise OSError(28, "No space left on device")
    assert target.read_text() == "old" and os.listdir() == ["report.md"]


def test_a_rename_that_fails_leaves_the_old_file_and_no_other(monkeypatch):
    run.write_text_atomic(Path("report.md"), "old")
    monkeypatch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(InputError, match="Input/output error"):
        run.write_text_atomic(Path("report.md"), "new")
    assert Path("report.md").read_text() == "old" and os.listdir() == ["report.md"]


def test_json_has_no_nan_and_takes_numpy_and_paths():
    value = {"a": math.nan, "b": [math.inf, (1, np.float32(0.5))], "c": np.int64(3), "d": Path("x"),
             "e": None, "f": True, "g": np.nan}
    run.write_json(Path("v.json"), value)
    assert run.read_json(Path("v.json")) == {"a": None, "b": [None, [1, 0.5]], "c": 3, "d": "x", "e": None, "f": True, "g": None}


@pytest.mark.parametrize(("content", "message"), [("", "is not JSON"), ("[1]", "holds a JSON list"), ("\0\xff", "is not JSON")])
def test_read_json_names_the_file_and_the_fault(content, message):
    Path("r.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=f"r.json {message}"):
        run.read_json(Path("r.json"))
    with pytest.raises(InputError, match="other.json cannot be read"):
        run.read_json(Path("other.json"))


def test_toml_round_trip():
    table = {"lr": 1e-5, "n": 3, "name": 'a "b" [x]\n', "on": True, "none": None, "out": Path("a/b"), "list": (1, 2),
             "w": np.float64(0.25), "nan": math.nan, "versions": {"torch": "2.15.0+cu132", "none": None}}
    run.write_toml(Path("config.toml"), table)
    back = tomllib.loads(Path("config.toml").read_text())
    assert math.isnan(back.pop("nan"))
    assert back == {"lr": 1e-5, "n": 3, "name": 'a "b" [x]\n', "on": True, "out": "a/b", "list": [1, 2], "w": 0.25,
                    "versions": {"torch": "2.15.0+cu132"}}


def test_metrics_are_on_disk_line_by_line():
    with run.MetricsLog(Path("metrics.jsonl")) as log:
        log.append({"step": 1, "loss": math.nan})
        assert run.read_metrics(Path("metrics.jsonl")) == [{"step": 1, "loss": None}]  # before close


def test_metrics_of_a_killed_run_are_read_and_continued():
    path = Path("metrics.jsonl")
    with run.MetricsLog(path) as log:
        for step in range(3):
            log.append({"step": step})
    path.write_bytes(path.read_bytes()[:-4])
    assert [r["step"] for r in run.read_metrics(path)] == [0, 1]
    with run.MetricsLog(path) as log:
        log.append({"step": 2})
    assert [r["step"] for r in run.read_metrics(path)] == [0, 1, 2]
    assert json.loads(path.read_text().splitlines()[-1]) == {"step": 2}
    with pytest.raises(InputError, match="cannot be read"):
        run.read_metrics(Path("none.jsonl"))
