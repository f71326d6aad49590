"""95% intervals of an accuracy and of a difference on the same samples, McNemar's test of that difference,
and chance."""
import math

from torch import Tensor

from pwoa_cli.errors import InputError

Z95 = 1.959963984540054  # 97.5% quantile of the normal distribution


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson (1927) 95% score interval of correct/n: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 +
    z^2/n).

    Exactly 0 below for correct = 0 and 1 above for correct = n. Raises: InputError unless 0 <= correct <= n,
    n > 0.
    """
    if not 0 <= correct <= n or n == 0:
        raise InputError(f"An accuracy of {correct} out of {n} has no interval: expected 0 <= correct <= n "
                         "and n > 0.")
    p, z2 = correct / n, Z95 * Z95
    centre = p + z2 / (2 * n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    return (0.0 if correct == 0 else low), (1.0 if correct == n else high)


def paired_drop(teacher: Tensor, student: Tensor) -> tuple[float, tuple[float, float]]:
    """Drop in accuracy p_T - p_S on the same samples, with Newcombe's (1998, method 10) 95% interval for
    paired data.

    With Wilson intervals (l, u) of each: D - sqrt(a^2 - 2 phi a b + b^2) with a = p_T - l_T, b = u_S - p_S,
    and the mirror image above; phi is the correlation of the flags, shrunk towards 0 by n/2 in its numerator
    when it is positive.
    Args: teacher, student: (n,) bool, correct or not. Raises: InputError if the shapes differ or n is 0.
    """
    if teacher.shape != student.shape or teacher.dim() != 1 or not len(teacher):
        raise InputError(f"Flags of shapes {tuple(teacher.shape)} and {tuple(student.shape)} are not of the "
                         "same samples.")
    t, s, n = teacher.bool().cpu(), student.bool().cpu(), len(teacher)
    right_t, right_s = int(t.sum()), int(s.sum())
    p_t, p_s, drop = right_t / n, right_s / n, (right_t - right_s) / n
    (l_t, u_t), (l_s, u_s) = wilson(right_t, n), wilson(right_s, n)
    phi = _shrunk_phi(right_t, right_s, int((t & s).sum()), n)
    low = drop - _side(p_t - l_t, u_s - p_s, phi)
    high = drop + _side(u_t - p_t, p_s - l_s, phi)
    return drop, (max(-1.0, low), min(1.0, high))


def _side(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))  # rounding when a = b and phi is near 1


def _shrunk_phi(right_t: int, right_s: int, both: int, n: int) -> float:
    """Correlation of the flags as Newcombe corrects it; 0 if one model is right, or wrong, on every
    sample."""
    scale = right_t * (n - right_t) * right_s * (n - right_s)
    covariance = both * n - right_t * right_s  # equals ad - bc of the 2x2 table
    if scale == 0:
        return 0.0
    return (max(covariance - n / 2, 0) if covariance > 0 else covariance) / math.sqrt(scale)


def discordant(teacher: Tensor, student: Tensor) -> tuple[int, int, float]:
    """McNemar's (1947) table off its diagonal, and the exact test: (only the teacher right, only the student
    right, p).

    p = min(1, 2 P(X <= min(b, c))) with X binomial(b + c, 1/2), two-sided; 1 where no sample differs.
    Args: teacher, student: (n,) bool, correct or not.
    """
    b, c = int((teacher & ~student).sum()), int((~teacher & student).sum())
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    return b, c, min(1.0, float(2 * tail / 2 ** (b + c)))


def near_chance(correct: int, n: int, classes: int, *, deviations: float) -> bool:
    """Whether `correct` of n is at, below or within so many standard deviations above 1/K: no better than
    guessing.

    sd = sqrt(p (1 - p) / n), p = 1/K. Never where n is so small (9 for two classes and 3) that a perfect
    model would be too.
    """
    p = 1 / classes
    limit = p + deviations * math.sqrt(p * (1 - p) / n)
    return limit < 1 and correct / n <= limit


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(X >= k) for a binomial X of n trials with 0 < p < 1, in logarithms, as binomial coefficients
    overflow."""
    def log_pmf(i: int) -> float:
        return (math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
                + i * math.log(p) + (n - i) * math.log1p(-p))
    return 1.0 if k <= 0 else math.fsum(math.exp(log_pmf(i)) for i in range(k, n + 1))
