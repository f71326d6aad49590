"""Files that are there whole or not at all."""
import os
import re
import stat
import threading
from pathlib import Path

import pytest

from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.files.atomic import atomic, write_text_atomic


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


@pytest.fixture(params=["links", "none"])
def links(request, monkeypatch):
    """A file system with hard links, and one without, such as FAT."""
    def refused(*paths):
        raise PermissionError(1, "Operation not permitted")

    if request.param == "none":
        monkeypatch.setattr(os, "link", refused)


def test_a_new_file_replaces_none_that_came_meanwhile(links):
    with atomic(Path("a.pt"), new=True) as temporary:
        temporary.write_text("mine")
    assert Path("a.pt").read_text() == "mine" and os.listdir() == ["a.pt"]
    with (pytest.raises(InputError, match="b.pt exists; it was not touched") as caught,
          atomic(Path("b.pt"), new=True) as temporary):
        temporary.write_text("mine")
        Path("b.pt").write_text("theirs")
    assert Path("b.pt").read_text() == "theirs" and sorted(os.listdir()) == ["a.pt", "b.pt"]
    assert caught.value.hint == "Name another: --out FILE"


def test_of_many_that_write_a_new_file_at_once_one_does(links):
    together, done = threading.Barrier(8), []

    def write(number):
        try:
            with atomic(Path("a.pt"), new=True) as temporary:
                temporary.write_text(str(number))
                together.wait(60)
            done.append(str(number))
        except InputError:
            done.append("")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(done) == [""] * 7 + [Path("a.pt").read_text()] and os.listdir() == ["a.pt"]


def test_a_link_whose_answer_was_lost_is_there(monkeypatch):
    link = os.link

    def twice(*paths):
        link(*paths)
        link(*paths)

    monkeypatch.setattr(os, "link", twice)
    with atomic(Path("a.pt"), new=True) as temporary:
        temporary.write_text("mine")
    assert Path("a.pt").read_text() == "mine" and os.listdir() == ["a.pt"]


def test_a_rename_that_fails_leaves_no_name_that_was_taken_for_it(monkeypatch):
    def broken(*paths):
        raise OSError(5, "Input/output error")

    for name in ("link", "replace"):
        monkeypatch.setattr(os, name, broken)
    with pytest.raises(PwoaError, match="Input/output error"), atomic(Path("a.pt"), new=True) as temporary:
        temporary.write_text("mine")
    assert not os.listdir()
