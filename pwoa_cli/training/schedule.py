"""Learning rate and sparsity as functions of the training step, so that nothing has to be remembered between
steps."""
import math


def cubic_sparsity(target: float, progress: float, *, start: float = 0.0) -> float:
    """start + (target - start) (1 - (1 - progress)^3), start at progress 0 and target from 1 on (Zhu & Gupta
    2017, eq. 1)."""
    return start + (target - start) * (1 - (1 - min(1.0, max(0.0, progress))) ** 3)


def regrow_fraction(start: float, *, step: int, steps: int) -> float:
    """start/2 (1 + cos(pi step/steps)), from start to 0 (Evci et al. 2020, sec. 3, f_decay)."""
    return start / 2 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def learning_rate(kind: str, base: float, *, step: int, steps: int, steps_per_epoch: int,
                  period: int = 3) -> float:
    """Learning rate of 0-based `step` out of `steps`.

    constant; cosine: base/2 (1 + cos(pi step/steps)); warm-cosine: linear over the first tenth, then cosine;
    admm: the published code's, base at the first epoch of every ADMM period and a tenth of the former at each
    later one, taking effect one step late as the code applies its schedule after the optimiser's step.
    Raises: ValueError for another kind.
    """
    if kind == "constant":
        return base
    if kind == "cosine":
        return base / 2 * (1 + math.cos(math.pi * step / steps))
    if kind == "warm-cosine":
        warm = max(1, steps // 10)
        if step < warm:
            return base * (step + 1) / warm
        return base / 2 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    if kind == "admm":
        return base * 0.1 ** (max(0, step - 1) // steps_per_epoch % period)
    raise ValueError(f"learning rate schedule {kind!r}, expected constant, cosine, warm-cosine or admm")
