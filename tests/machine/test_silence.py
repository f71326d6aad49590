"""What is the whole process's is as it was, whichever threads were quiet at once."""
import logging
import sys
import threading
import time
import warnings

import pytest
import torch

from pwoa_cli.checkpoints import pickles
from pwoa_cli.machine.silence import quietly, unlogged


def test_nothing_is_printed_warned_or_logged(capsys, caplog):
    with quietly():
        print("of a library")
        warnings.warn("of a library", stacklevel=1)
        logging.getLogger("library").critical("of a library")
    assert capsys.readouterr() == ("", "") and not caplog.records


@pytest.mark.parametrize("before", [logging.NOTSET, logging.INFO, logging.CRITICAL])
def test_what_was_disabled_before_is_so_after(before):
    try:
        logging.disable(before)
        with unlogged(logging.WARNING):
            assert logging.root.manager.disable == max(before, logging.WARNING)
        assert logging.root.manager.disable == before
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("other", [quietly, lambda: unlogged(logging.WARNING)])
def test_threads_that_overlap_give_stdout_and_logging_back(other):
    """The first begins, the second begins, the first ends, the second ends."""
    stdout, filters = sys.stdout, list(warnings.filters)
    begun, first_is_over = threading.Event(), threading.Event()

    def second():
        begun.set()
        with other():
            first_is_over.wait(60)

    thread = threading.Thread(target=second)
    with quietly():
        thread.start()
        begun.wait(60)
        thread.join(0.2)  # it would be inside by now
    first_is_over.set()
    thread.join(60)
    assert sys.stdout is stdout and logging.root.manager.disable == logging.NOTSET
    assert list(warnings.filters) == filters


def test_pickles_are_read_by_one_thread_at_a_time(tmp_path, monkeypatch):
    """What a pickle may hold is the process's too: another's end took it away."""
    torch.save({"w": torch.ones(2)}, tmp_path / "m.pt")
    load, inside, most = torch.load, [], []

    def slow(*args, **options):
        inside.append(1)
        time.sleep(0.05)
        most.append(len(inside))
        try:
            return load(*args, **options)
        finally:
            inside.pop()

    monkeypatch.setattr(torch, "load", slow)
    threads = [threading.Thread(target=pickles._read_plain, args=(tmp_path / "m.pt",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 4
