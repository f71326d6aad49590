"""What a run is asked for, and which sparsity a search tries next, from the stages that are over: a pure
function of them.

d = 1 - sparsity, the density; a accepted, r refused
    none over                 half of the weights that are not zero
    none accepted             half of the weights that the least refused stage takes, down to LEAST of them
    none refused              d = RUNG * d_a
    both                      d_r once more, if a stage was accepted since it was refused, else
                              sqrt(d_a * d_r), until d_a <= GAP * d_r

The second chance is for what was refused because it was too far at once: on MNIST 93.52% from 89.2% lost 1.7
points, 93.09% by way of 91.63% and 92.64% lost 0.2.
"""
import math
import re
from dataclasses import dataclass, replace

from pwoa_cli.errors import InputError
from pwoa_cli.pruning.neighbours import stay_of

SHARE = 1 / 3  # of the recipe's epochs at its sparsity, for each stage: it begins where the last one ended
RUNG = 0.6  # density of a stage over that of the one before
GAP = 1.1  # density of the result over the highest that was refused, at most
LEAST = 0.05  # of the weights: what is less is not worth a file
STAGES = 28  # tried at most; 21 suffice down to a density of 1 in 1000 where the loss only grows


@dataclass(frozen=True)
class Stage:
    """A sparsity that was trained for and judged. points, ci95: lost against the teacher, paired; why: of a
    stage that is refused for another reason than its interval."""

    sparsity: float
    steps: int
    epochs: float
    points: float
    ci95: tuple[float, float]
    accepted: bool
    why: str = ""


@dataclass(frozen=True)
class Search:
    """How far a search is: plain numbers, from which it goes on. begun: fraction of zeros before it;
    unreachable: sparsities that the structure does not allow."""

    begun: float = 0.0
    stages: tuple[Stage, ...] = ()
    unreachable: tuple[float, ...] = ()

    @property
    def accepted(self) -> Stage | None:
        """The sparsest stage that keeps the limit."""
        return max((stage for stage in self.stages if stage.accepted), key=lambda s: s.sparsity, default=None)

    @property
    def refused(self) -> float | None:
        """The least sparsity above it that was refused, or cannot be reached."""
        least = self.accepted.sparsity if self.accepted else 0.0
        beyond = [stage.sparsity for stage in self.stages if not stage.accepted]
        return min((s for s in [*beyond, *self.unreachable] if s > least), default=None)

    def deserves_another(self, sparsity: float) -> bool:
        """Whether a stage was accepted since this one was refused, and it was tried once only."""
        tried = [stage.sparsity for stage in self.stages].count(sparsity)
        return tried == 1 and self.stages[-1].accepted


def fraction(text: str, *, flag: str = "--sparsity") -> float:
    """Fraction in (0, 1) from what was typed. Raises: InputError, with what was meant where that can be
    guessed."""
    example = "Nine weights in ten: --sparsity 0.9" if flag == "--sparsity" else f"A half: {flag} 0.5"
    try:
        value = float(text.strip().removesuffix("%").replace(",", "."))
    except ValueError:
        raise InputError(f"{flag} {text} is not a number.", hint=example) from None
    percent = text.strip().endswith("%") or value > 1
    if percent and 0 < value < 100 or "," in text and 0 < value < 1:
        meant = f"{value / 100 if percent else value:g}"
        raise InputError(f"{flag} {text} is not a number between 0 and 1. Did you mean {meant}?",
                         hint=f"{flag} {meant}")
    if not 0 < value < 1:
        raise InputError(f"{flag} {text} is not between 0 and 1 (0: nothing to prune, 1: nothing left).",
                         hint=example)
    return value


def neighbours(text: str) -> str:
    """N:M from what was typed, two numbers: of M neighbours N stay. Raises: InputError."""
    if stay_of(kind := text.strip()) is None:
        raise InputError(f"--nm {text} is not N:M, N weights that stay of M neighbours, 0 < N < M < 100.",
                         hint="As NVIDIA's sparse tensor cores take them: --nm 2:4")
    return kind


def size_bytes(text: str, *, flag: str, example: str) -> int:
    """8GB, 500k or 300000 as bytes. Raises: InputError."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) *([KMGT]?)(I?)B?", text.strip().upper(), re.ASCII)
    if not found or not float(found[1]):
        raise InputError(f"{flag} {text[:40]} is no number of bytes.", hint=f"Such as {flag} {example}")
    step = 1024 if found[3] else 1000
    return int(float(found[1]) * step ** " KMGT".index(found[2] or " "))


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How much goes: one of them says so. sparsity: in (0, 1), of weights; 0 where another does. channels,
    macs: the fraction of channels or of multiplications to remove; nm: "2:4"; target_bytes: the most that the
    file may have; max_loss: points of the worst case that may be lost; held_out: training images that judge
    it."""

    sparsity: float = 0.0
    max_loss: float | None = None
    held_out: int | None = None
    channels: float | None = None
    macs: float | None = None
    nm: str | None = None
    target_bytes: int | None = None

    def __str__(self) -> str:
        """What a run's folder is called by."""
        if self.max_loss is not None:
            return f"loss{self.max_loss:g}"
        if self.nm is not None:
            return self.nm.replace(":", "of")
        if self.target_bytes is not None:
            return f"{self.target_bytes}B"
        return f"macs{self.macs:.10g}" if self.macs is not None else f"{self.channels or self.sparsity:.10g}"


def goal(sparsity: str | None, max_loss: float | None = None, held_out: int | None = None,
         channels: str | None = None, macs: str | None = None, nm: str | None = None,
         target_bytes: int | None = None) -> Goal:
    """From what was typed. Raises: InputError unless one of the six is there, in its range, and held_out with
    max_loss only."""
    made = Goal(sparsity=0.0 if sparsity is None else fraction(sparsity), max_loss=max_loss,
                held_out=held_out,
                channels=None if channels is None else fraction(channels, flag="--channels"),
                macs=None if macs is None else fraction(macs, flag="--macs"),
                nm=None if nm is None else neighbours(nm), target_bytes=target_bytes)
    given = {"--sparsity": sparsity, "--max-loss": max_loss, "--channels": channels, "--macs": macs,
             "--nm": nm, "--target-bytes": target_bytes}
    flags = [flag for flag, value in given.items() if value is not None]
    if len(flags) > 1 and flags != ["--sparsity", "--max-loss"]:
        raise InputError(f"{flags[0]} and {flags[-1]} both say how much goes.", hint="Give one of them.")
    if not flags:
        raise InputError("Missing option '--sparsity' (or '--max-loss', '--channels', '--macs', '--nm', "
                         "'--target-bytes').", hint="See pwoa prune --help")
    if max_loss is not None and not 0 < max_loss < 100:
        raise InputError(f"--max-loss {max_loss:g} is not between 0 and 100 points.",
                         hint="One image in a hundred: --max-loss 1")
    if sparsity is not None and max_loss is not None:
        first, other = f"--sparsity {made.sparsity:.10g}", f"--max-loss {max_loss:g}"
        raise InputError(f"{first} and {other} both say how many weights go.",
                         hint=f"One of them: {first}, or {other}")
    if held_out is not None and max_loss is None:
        raise InputError(f"--held-out {held_out} is for --max-loss: with {flags[0]} all training images are "
                         "trained on.", hint="Leave --held-out away.")
    return made


def next_sparsity(search: Search) -> float | None:
    """The sparsity in (begun, 1) to try next; None: the search is over."""
    if len(search.stages) + len(search.unreachable) >= STAGES:
        return None
    best, refused = search.accepted, search.refused
    if best is None:
        taken = 1.0 if refused is None else (refused - search.begun) / (1 - search.begun)
        return _rounded((1 - search.begun) * (1 - taken / 2)) if taken / 2 >= LEAST else None
    density = 1 - best.sparsity
    if refused is None:
        return _rounded(RUNG * density)
    if search.deserves_another(refused):
        return refused
    if density <= GAP * (1 - refused):
        return None
    return _rounded(math.sqrt(density * (1 - refused)))


def _rounded(density: float) -> float:
    """The sparsity of a density, which gets three digits, so that people can type it again."""
    return round(1 - float(f"{density:.3g}"), 12)


def up_to(begun: float, highest: float) -> list[float]:
    """The sparsities that a search tries where all up to `highest` keep the limit."""
    search = Search(begun)
    while (sparsity := next_sparsity(search)) is not None:
        stage = Stage(sparsity, 0, 0.0, 0.0, (0.0, 0.0), sparsity <= highest)
        search = replace(search, stages=(*search.stages, stage))
    return [stage.sparsity for stage in search.stages]
