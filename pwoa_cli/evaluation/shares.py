"""Which share of an evaluation is done, and what is under way."""
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pwoa_cli.attacks import Attack
from pwoa_cli.attacks.bounded import Meter

Progress = Callable[[str, float], None]  # what is under way, share of the whole that is done


class Shares:
    """Which share of the evaluation is done, by the passes that each attack is known to need."""

    def __init__(self, chosen: Sequence[Attack], blocks: int, meter: Meter, progress: Progress):
        self.blocks, self.meter, self.progress, self.done, self.finished = blocks, meter, progress, 0.0, 0
        self.costs = {attack.name: attack.cost for attack in chosen}

    @property
    def total(self) -> int:
        """Of all attacks on all blocks."""
        return sum(self.costs.values()) * self.blocks

    def add(self, attack: Attack) -> None:
        """An attack is over on a block."""
        self.finished += self.costs[attack.name]
        self.done = self.finished
        self.progress(attack.name, self.done / self.total)

    @contextmanager
    def watched(self, part: Attack, blocks: Sequence[int], rows: int) -> Iterator[None]:
        """Inside, every pass moves the share on, up to what the part is expected to need."""
        meter, cost = self.meter, part.cost * len(blocks)
        start = meter.forwards + 2 * meter.backwards
        place = f"block {blocks[0] + 1}" if len(blocks) == 1 else f"blocks {blocks[0] + 1}-{blocks[-1] + 1}"

        def beat() -> None:
            inside = min(1.0, (meter.forwards + 2 * meter.backwards - start) / (part.cost * rows))
            self.progress(f"{part.name} {place}/{self.blocks}", (self.done + cost * inside) / self.total)

        meter.beat = beat
        try:
            yield
        finally:
            meter.beat = lambda: None
            self.done += cost
