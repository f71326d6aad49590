"""Folders that are there whole or not at all."""
import os
from pathlib import Path

import pytest

from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.files.folders import whole_folder


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


def test_what_a_killed_process_left_is_put_back_and_swept():
    for left in ("new", "old"):
        Path(f".pwoa-card.{left}").mkdir()
        Path(f".pwoa-card.{left}", "a.txt").write_text(left)
    with (pytest.raises(KeyboardInterrupt), whole_folder(Path("card"), hint="x")):
        assert Path("card/a.txt").read_text() == "old"
        raise KeyboardInterrupt
    assert os.listdir() == ["card"] and Path("card/a.txt").read_text() == "old"


def test_a_folder_has_one_writer():
    with (whole_folder(Path("card"), hint="x"),
          pytest.raises(InputError, match="folder card is being written by"),
          whole_folder(Path("card"), hint="x")):
        raise AssertionError("two writers")
    assert os.listdir() == ["card"]


def test_a_folder_that_cannot_be_made_is_a_sentence():
    Path("file").write_text("")
    with pytest.raises(InputError, match="file/card cannot be written: Not a directory"):
        _filled("file/card", "new")
