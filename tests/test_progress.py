"""A line about something that takes long: within 5 s, then ever more rarely, at last every 30 s."""
import pytest

from pwoa_cli import progress


def test_patience(monkeypatch):
    now, said = [100.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    patience = progress.Patience(said.append)
    for second in range(110):
        now[0] = 100.0 + second
        patience.say(f"after {second} s")
    assert said == [f"after {second} s" for second in (5, 10, 20, 40, 70, 100)]


@pytest.mark.parametrize("seconds", [0, 4.9])
def test_what_is_quick_is_not_spoken_of(monkeypatch, seconds):
    monkeypatch.setattr(progress.time, "monotonic", iter([0.0, seconds]).__next__)
    said = []
    progress.Patience(said.append).say("done")
    assert said == []
