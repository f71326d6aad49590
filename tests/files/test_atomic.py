"""Files that are there whole or not at all."""
import os
import re
import stat
from pathlib import Path

import pytest

from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.files.atomic import atomic, whole_folder, write_text_atomic


def test_a_write_that_fails_in_the_middle_leaves_the_old_file_and_no_other():
    target = Path("report.md")
    write_text_atomic(target, "old")
    with pytest.raises(KeyboardInterrupt), atomic(target) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    with (pytest.raises(PwoaError, match="report.md cannot be written: No space left"),
          atomic(target) as temporary):
        temporary.write_text("half of the n")
        raise OSError(28, "No space left on device")
    assert target.read_text() == "old" and os.listdir() == ["report.md"]


def test_a_rename_that_fails_leaves_the_old_file_and_no_other(monkeypatch):
    write_text_atomic(Path("report.md"), "old")
    monkeypatch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(PwoaError, match="Input/output error"):
        write_text_atomic(Path("report.md"), "new")
    assert Path("report.md").read_text() == "old" and os.listdir() == ["report.md"]


def test_the_temporary_name_is_hidden_beside_the_file_and_another_each_time():
    Path("sub").mkdir()
    names = set()
    for _ in range(5):
        with atomic(Path("sub/report.md")) as temporary:
            temporary.write_text("new")
            assert temporary.resolve().parent == Path("sub").resolve()
            assert re.fullmatch(r"\.pwoa-[0-9a-f]+\.tmp", temporary.name)
            names.add(temporary.name)
    assert len(names) == 5 and os.listdir("sub") == ["report.md"]


def test_a_link_is_followed_and_stays():
    Path("there").mkdir()
    Path("there/real.md").write_text("old")
    Path("link.md").symlink_to("there/real.md")
    write_text_atomic(Path("link.md"), "new")
    assert Path("link.md").is_symlink() and Path("there/real.md").read_text() == "new"
    assert sorted(os.listdir()) == ["link.md", "there"] and os.listdir("there") == ["real.md"]


def test_what_is_no_regular_file_is_not_replaced():
    os.mkfifo("pipe")
    Path("folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(InputError, match=f"{name} cannot be written: it is not a regular file"):
            write_text_atomic(Path(name), "new")
    assert stat.S_ISFIFO(os.stat("pipe").st_mode) and sorted(os.listdir()) == ["folder", "pipe"]


def test_the_file_and_then_its_folder_are_synced(monkeypatch):
    done, sync, rename = [], os.fsync, os.replace

    def noted(handle):
        done.append(stat.S_IFMT(os.fstat(handle).st_mode))
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("rename") or rename(*paths))
    write_text_atomic(Path("report.md"), "new")
    assert done == [stat.S_IFREG, "rename", stat.S_IFDIR]


def test_the_error_says_what_was_expected_and_what_to_do():
    with (pytest.raises(InputError) as caught,
          atomic(Path("none/a"), wanted="a file", hint="Another.") as temporary):
        temporary.write_text("new")
    assert caught.value.message == "none/a: cannot be written (No such file or directory), expected a file."
    assert caught.value.hint == "Another."


def _filled(name, text):
    with whole_folder(Path(name), hint="--card DIR") as made:
        (made / "sub").mkdir()
        (made / "sub" / "a.txt").write_text(text)
        assert not Path(name).exists() or (Path(name) / "sub" / "a.txt").read_text() != text


def test_a_folder_is_there_whole_and_takes_the_place_of_an_older_one():
    for text in ("old", "new"):
        _filled("deep/card", text)
        assert Path("deep/card/sub/a.txt").read_text() == text and os.listdir("deep") == ["card"]


@pytest.mark.parametrize("broken", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_folder_that_is_not_finished_leaves_the_old_one_and_no_other(broken):
    _filled("card", "old")
    with (pytest.raises((PwoaError, KeyboardInterrupt)), whole_folder(Path("card"), hint="x") as made):
        (made / "b.txt").write_text("half")
        raise broken
    assert os.listdir() == ["card"] and os.listdir("card") == ["sub"]


def test_a_folder_whose_second_rename_fails_is_put_back(monkeypatch):
    _filled("card", "old")
    rename = Path.rename

    def fails(self, target):
        if self.name.endswith(".new"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(PwoaError, match="card cannot be written: Input/output error"):
        _filled("card", "new")
    assert os.listdir() == ["card"] and Path("card/sub/a.txt").read_text() == "old"


def test_a_folder_that_cannot_be_made_is_a_sentence():
    Path("file").write_text("")
    with pytest.raises(InputError, match="file/card cannot be written: Not a directory"):
        _filled("file/card", "new")
