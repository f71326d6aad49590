"""Learning rate and sparsity by step against their published ends."""
import pytest

from pwoa_cli.training import schedule


def test_cubic_schedule_has_the_published_ends():
    assert schedule.cubic_sparsity(0.9, 0.0) == 0.0
    assert schedule.cubic_sparsity(0.9, 0.5) == pytest.approx(0.9 * 0.875)
    assert schedule.cubic_sparsity(0.9, 1.0) == 0.9 == schedule.cubic_sparsity(0.9, 3.0)


def test_cubic_schedule_from_a_student_that_is_sparse_already():
    assert schedule.cubic_sparsity(0.9, 0.0, start=0.6) == 0.6
    assert schedule.cubic_sparsity(0.9, 0.5, start=0.6) == pytest.approx(0.9 - 0.3 * 0.125)  # (1 - t)^3 left
    assert schedule.cubic_sparsity(0.9, 1.0, start=0.6) == pytest.approx(0.9)


def test_the_fraction_that_grows_back_falls_along_a_cosine():
    fractions = [schedule.regrow_fraction(0.4, step=s, steps=8) for s in (0, 4, 8, 9)]
    assert fractions == pytest.approx([0.4, 0.2, 0.0, 0.0])


def test_learning_rates():
    def at(kind, step):
        return schedule.learning_rate(kind, 0.1, step=step, steps=100, steps_per_epoch=4)

    assert at("cosine", 0) == pytest.approx(0.1) and at("cosine", 50) == pytest.approx(0.05)
    assert at("warm-cosine", 4) == pytest.approx(0.05) and at("warm-cosine", 10) == pytest.approx(0.1)
    # published ADMM schedule: one step late, a tenth at each later epoch of a period of three
    rates = [at("admm", s) for s in (0, 4, 5, 8, 9, 12, 13)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.1])
    with pytest.raises(ValueError, match="schedule 'linear'"):
        at("linear", 0)
