"""How many samples fit into memory."""
from helpers.problems import right_on

from pwoa_cli.attacks import bounded


def test_the_batch_is_measured(monkeypatch):
    model, x, _ = right_on(4, size=32)
    assert bounded.fitting_batch(model, x, most=200) == 200
    # bytes that a sample needs at least: the input, and the convolution's output
    each = 4 * (32 * 32 + 4 * 30 * 30)
    monkeypatch.setattr(bounded, "free_bytes", lambda device: 100 * each)
    assert 3 <= bounded.fitting_batch(model, x, most=200) <= 25
    monkeypatch.setattr(bounded, "free_bytes", lambda device: 0.0)
    assert bounded.fitting_batch(model, x[:1], most=200) == 1
