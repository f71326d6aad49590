"""Run folders: their names, what may be written where, which is the newest."""
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from pwoa_cli.errors import InputError
from pwoa_cli.files import run_folder
from pwoa_cli.files.plain import read_json, write_json

NOW = datetime(2026, 3, 4, 5, 6, 7)


def create(out=None, **options) -> Path:
    return run_folder.create(out, **{"model_name": "lenet", "sparsity": 0.9, "now": NOW} | options)


def finish(path: Path, created: datetime | None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.safetensors").write_bytes(b"x")
    write_json(path / "report.json", {"created": created.isoformat()} if created else {})
    return path


def test_a_link_to_nothing_is_found_before_any_work(tmp_path):
    for name, target in (("deep", "absent/folder"), ("near", "folder"), ("round", "round")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(InputError, match=f"{name} is a link to {target}, which is not there"):
            create(tmp_path / name)
    for flag, ending in (("--out", ".pt"), ("--html", ".html"), ("--junit", ".xml")):
        link = (tmp_path / "link").with_suffix(ending)
        link.symlink_to(f"absent/file{ending}")
        with pytest.raises(InputError, match=f"^{flag} .*, a link to absent/file{ending}, cannot be written: "
                                             "No such file or directory.$"):
            run_folder.check_file(link, flag=flag, ending=ending)
        (tmp_path / "absent").mkdir()  # a link is followed, to what is written or written anew
        run_folder.check_file(link, flag=flag, ending=ending)
        (tmp_path / "absent").rmdir()


def test_default_folder_says_model_sparsity_and_time_and_is_new_each_time():
    assert [str(create()) for _ in range(3)] == [f"pwoa-runs/lenet-0.9-20260304-050607{again}"
                                                 for again in ("", "-2", "-3")]


@pytest.mark.parametrize(("name", "start"),
                         [("../../etc/x y[z]", "_.._etc_x_y_z_-0.9-"), ("-rf", "rf-0.9-"), ("", "model-0.9-"),
                          ("é" * 300, "_-0.9-"), ("a" * 300, "a" * 60 + "-0.9-")])
def test_any_model_name_makes_one_folder_under_the_root(name, start):
    path = create(model_name=name)
    assert path.parent == run_folder.ROOT and path.is_dir() and path.name.startswith(start)


def test_named_folder_may_be_new_or_empty():
    assert create(Path("a/b/c")).is_dir()
    assert create(Path("a/b/c")) == Path("a/b/c")  # still empty
    assert list(Path("a/b/c").iterdir()) == []  # the writing test leaves nothing


def test_named_folder_with_content_is_refused_and_left_alone():
    Path("old").mkdir()
    Path("old/report.json").write_text("mine")
    with pytest.raises(InputError, match="old exists and is not empty") as caught:
        create(Path("old"))
    assert "--out DIR" in caught.value.hint and caught.value.exit_code == 2
    assert Path("old/report.json").read_text() == "mine"


@pytest.mark.parametrize("out", ["file", "file/below/it", "/proc/pwoa", "x" * 300])
def test_places_that_cannot_hold_a_run(out):
    Path("file").write_text("in the way")
    with pytest.raises(InputError, match="output folder") as caught:
        create(Path(out))
    assert out in caught.value.message and "--out DIR" in caught.value.hint


def test_a_file_named_like_the_root_is_in_the_way():
    Path("pwoa-runs").write_text("")
    with pytest.raises(InputError, match="output folder pwoa-runs cannot be written: Not a directory"):
        create()
    with pytest.raises(InputError, match="cannot be read as a folder"):
        run_folder.newest()


def test_full_disk_is_refused_before_work_and_leaves_no_folder(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    with pytest.raises(InputError, match="has 5 MB free, this run needs at least 10 MB"):
        create()
    assert not run_folder.ROOT.exists()
    Path("mine").mkdir()
    with pytest.raises(InputError):
        create(Path("mine"))
    assert Path("mine").is_dir()  # was there before


def opened(out=None, *, write=False):
    with run_folder.opened(out, model_name="lenet", sparsity=0.9, now=NOW) as path:
        assert path.is_dir()
        if write:
            (path / "model.safetensors").write_bytes(b"x")
    return path


def test_an_opened_folder_stays_if_something_was_written():
    assert opened(write=True).is_dir() and opened(Path("a/b"), write=True).is_dir()
    assert not opened().exists() and run_folder.ROOT.is_dir()  # the other run is in there


def test_an_opened_folder_that_stays_empty_goes_with_the_parents_made_for_it():
    assert not opened().exists() and not run_folder.ROOT.exists()
    Path("mine").mkdir()
    opened(Path("mine"))
    opened(Path("mine/a/b"))
    assert Path("mine").is_dir() and not Path("mine/a").exists()  # mine was there before
    with pytest.raises(ValueError), run_folder.opened(None, model_name="lenet", sparsity=0.9, now=NOW):
        raise ValueError
    with (pytest.raises(InputError),
          run_folder.opened(Path("x" * 300), model_name="lenet", sparsity=0.9, now=NOW)):
        pass
    assert [p.name for p in Path().iterdir()] == ["mine"]


def test_newest_goes_by_time_not_by_name():
    finish(run_folder.ROOT / "zebra-0.9-20260101-000000", NOW)
    late = finish(run_folder.ROOT / "ant-0.9-20260102-000000", NOW + timedelta(days=1))
    finish(run_folder.ROOT / "mid-0.9-20260101-120000", NOW + timedelta(hours=5))
    (run_folder.ROOT / "yak-0.9-20270101-000000").mkdir()  # unfinished
    assert run_folder.newest() == late


def test_newest_reads_the_name_where_the_report_says_no_time():
    finish(run_folder.ROOT / "zebra-0.9-20260101-000000", None)
    finish(run_folder.ROOT / "ant-0.9-20260102-000000-9", None)
    last = finish(run_folder.ROOT / "ant-0.9-20260102-000000-10", None)
    assert run_folder.newest() == last
    own_name = finish(run_folder.ROOT / "own-name", datetime(2026, 2, 1))  # --out pwoa-runs/own-name
    assert run_folder.newest() == own_name


def test_newest_does_not_step_back_over_a_broken_report():
    finish(run_folder.ROOT / "a-0.9-20260101-000000", datetime(2026, 1, 1))
    broken = finish(run_folder.ROOT / "a-0.9-20260102-000000", None)
    (broken / "report.json").write_text("{")
    assert run_folder.newest() == broken
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_json(broken / "report.json")


def test_no_finished_run():
    with pytest.raises(InputError, match="nothing there") as caught:
        run_folder.newest()
    assert caught.value.hint.endswith("pwoa prune model.pt --sparsity 0.9")
    create()
    with pytest.raises(InputError, match="1 unfinished there"):
        run_folder.newest()
