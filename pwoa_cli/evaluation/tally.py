"""What an evaluation knows so far: of each sample, who still stands, and of each attack, what it did to the
blocks that it is done with. (n,) is over all samples, (b,) over those of a block."""
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pwoa_cli.attacks import Attack, stages
from pwoa_cli.evaluation.inputs import Images
from pwoa_cli.evaluation.results import Result, curve
from pwoa_cli.evaluation.units import Unit

PART = 200  # inputs that are copied at once


class Known:
    """What is known of the samples so far: who still stands, which attack broke whom first, and its inputs
    where asked for."""

    def __init__(self, clean: Tensor, inputs: Images | None):
        """Args: clean: (n,) bool, right without an attack. inputs: (n,C,H,W), where adversarial ones are
        asked for."""
        self.standing = clean.clone()
        self.broken_by = ["" if right else "clean" for right in clean.tolist()]
        parts = [] if inputs is None else [inputs[first:first + PART].float().cpu()
                                           for first in range(0, len(clean), PART)]
        self.inputs = torch.cat(parts) if parts else None  # a copy: the user's stay
        self.forwards, self.backwards, self.seconds = 0, 0, 0.0

    def add(self, unit: Unit, name: str) -> None:
        """Take over what an attack, or a component of it, did to its samples."""
        self.forwards, self.backwards = self.forwards + unit.forwards, self.backwards + unit.backwards
        self.seconds += unit.seconds
        hit = unit.rows[unit.broken]
        new = self.standing[hit]
        for row in hit[new].tolist():
            self.broken_by[row] = name
        if self.inputs is not None:
            assert unit.inputs is not None  # as `keep_inputs` asks for both
            self.inputs[hit[new]] = unit.inputs[new]
        self.standing[hit] = False


class Line:
    """What one attack did to the blocks that it is done with: all of its components on all of their
    samples."""

    def __init__(self, attack: Attack, n: int):
        self.attack, self.units = attack, list[Unit]()
        self.todo, self.done, self.broken = (torch.zeros(n, dtype=torch.bool) for _ in range(3))
        self.distance = torch.full((n,), torch.nan)
        self.parts = {part.name: torch.zeros(n, dtype=torch.bool) for part in stages(attack)}

    def take(self, rows: slice, todo: Tensor, found: Sequence[tuple[str, Unit]]) -> None:
        """A block is over. Args: rows: its samples; todo: (b,) bool, which of them were attacked."""
        self.todo[rows], self.done[rows] = todo, True
        for name, unit in found:
            hit = unit.rows[unit.broken]
            self.broken[hit], self.parts[name][hit] = True, True
            self.distance[unit.rows] = unit.distance
            self.units.append(unit)

    def result(self, clean: Tensor, eps: float) -> Result:
        """Over the samples that are done."""
        units, several = self.units, len(self.parts) > 1
        # several components may leave the ball with one sample
        strays = min(sum(unit.outside for unit in units), int(self.todo.sum()))
        line = Result(self.attack.name, self.todo & ~self.broken, done=self.done, attacked=self.todo,
                      broken=self.broken, distance=self.distance, seconds=sum(unit.seconds for unit in units),
                      parts=self.parts if several else {}, outside=strays,
                      nonfinite=sum(unit.nonfinite for unit in units),
                      forwards=sum(unit.forwards for unit in units),
                      backwards=sum(unit.backwards for unit in units))
        return replace(line, curve=curve(line, clean, eps)) if self.attack.minimum_norm else line
