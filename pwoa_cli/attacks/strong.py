"""Restarts that learn from those before them, for what AutoAttack leaves: in the manner of A3 (Liu et al.
2022), written from the paper.

x clean inputs (B,C,H,W) in [0,1], y labels (B,), z logits (B,K), f margin max_{j != y} z_j - z_y, w
directions in the space of logits (B,K), their columns by rank: the label, then the other classes, the
likeliest first.

A round goes from a random point along the gradient of <w, z> (ODI, Tashiro et al. 2020), then up the margin
by PGD with a step that a cosine lets fall to 0. From A3: the signs of w are drawn as often as they helped
(adaptive directions), and samples far from the boundary are left out of later rounds, which take more steps
instead (statistics-based discarding). Ours is what "helped" means, as hardly any start breaks what AutoAttack
left: that it broke its sample, or came nearer to it than all before.
"""
import math
from functools import partial

import torch
from torch import Generator, Tensor, nn

from pwoa_cli.attacks.autoattack import MAX_TARGETS
from pwoa_cli.attacks.base import DUAL, distance, project, wrong
from pwoa_cli.attacks.gradient import margin, slope, stepped, uniform_start

ROUNDS = 20
STARTING = 7  # steps along w, of size eps
STEPS = 25  # up the margin, in the first round; a later one has more for fewer samples
LEAST = 0.25  # share of the standing samples that the last round goes on with
MANY = 100  # classes from which on MALT chooses the targets: among ten it only changes their order
CANDIDATES = 100  # classes that MALT looks at, as published


def restarts(model: nn.Module, inputs: Tensor, labels: Tensor, *, eps: float, norm: str, generator: Generator,
             rounds: int = ROUNDS, steps: int = STEPS) -> Tensor:
    """PGD on the margin from starts that learn from those before (A3); a sample leaves at its first success.

    Even rounds climb f, odd ones z_t - z_y for one target t after the other. A round takes about as many
    passes as the first one: `steps` for every sample that stands, or more for those nearest to the boundary.
    Args: inputs: (B,C,H,W) in [0,1]; labels: (B,); eps > 0; rounds, steps: > 0.
    Returns: (B,C,H,W) in [0,1] and in the ball; samples that hold out come back clean.
    """
    result, ranks = inputs.clone(), _ranks(model, inputs, labels)
    targets, learnt = _targets(model, inputs, ranks, norm), torch.empty(0, ranks.shape[1])
    nearest = torch.full((len(inputs),), -math.inf, device=inputs.device)  # largest f so far
    standing = torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)
    for turn in range(rounds):
        share = 1 - (1 - LEAST) * turn / max(1, rounds - 1)
        rows = _likeliest(standing, nearest, share)
        if not len(rows):
            break
        w = _directions(len(rows), learnt, generator)
        aims = targets[rows, turn // 2 % targets.shape[1]] if turn % 2 else None
        start = uniform_start(inputs[rows], eps=eps, norm=norm, generator=generator)
        adv, broken, best = _climb(model, start, inputs[rows], labels[rows], _by_class(w, ranks[rows]), aims,
                                   eps=eps, norm=norm, steps=round(steps / share))
        helped = broken | (turn > 0) & (best > nearest[rows])
        learnt = torch.cat([learnt, w[helped.to(w.device)]])
        result[rows[broken]], standing[rows[broken]] = adv[broken], False
        nearest[rows] = best.maximum(nearest[rows])
    return result


def _likeliest(standing: Tensor, nearest: Tensor, share: float) -> Tensor:
    """Indices of that share of the standing samples whose f came nearest to 0, one at least."""
    rows = standing.nonzero().flatten()
    best_first = nearest[rows].argsort(descending=True, stable=True)
    return rows[best_first[:math.ceil(share * len(rows))]]


def _directions(count: int, learnt: Tensor, generator: Generator) -> Tensor:
    """(count,K) in [-1,1], by rank: above 0 as often as those learnt (M,K) were; an even chance without any
    (Laplace's rule)."""
    chance = ((learnt > 0).sum(0) + 1) / (len(learnt) + 2)
    size, lot = torch.rand(2, count, learnt.shape[1], generator=generator, device=generator.device).cpu()
    return torch.where(lot < chance, size, -size)


def _by_class(w: Tensor, ranks: Tensor) -> Tensor:
    """Directions by rank as directions by class."""
    return torch.zeros(ranks.shape, device=ranks.device).scatter(1, ranks, w.to(ranks.device))


def _climb(model: nn.Module, start: Tensor, x: Tensor, y: Tensor, w: Tensor, targets: Tensor | None, *,
           eps: float, norm: str, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """One round: the first iterate of each sample that succeeds, or the start; who succeeded; its largest
    f."""
    result, broken = start.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    best, rows = torch.full((len(x),), -math.inf, device=x.device), torch.arange(len(x), device=x.device)
    adv, goal = start, y if targets is None else targets
    for step in range(STARTING + steps + 1):
        begun = step - STARTING
        value = (partial(_along, w=w) if begun < 0 else partial(margin, labels=y) if targets is None
                 else partial(_towards, labels=y, targets=goal))
        grad, _, logits = slope(model, adv, value)
        fooled = wrong(logits, y)
        result[rows[fooled]], broken[rows] = adv[fooled], fooled
        best[rows] = best[rows].maximum(margin(logits, y).nan_to_num(-math.inf))
        rows, adv, x, y, w, goal, grad = (t[~fooled] for t in (rows, adv, x, y, w, goal, grad))
        if not len(rows):
            break
        size = eps if begun < 0 else eps * (1 + math.cos(math.pi * begun / steps)) / 2
        adv = project(stepped(adv, grad, size=size, norm=norm), x, eps=eps, norm=norm)
    return result, broken, best


def _along(logits: Tensor, *, w: Tensor) -> Tensor:
    """<w, z>, (B,)."""
    return (w * logits).sum(1)


def _towards(logits: Tensor, *, labels: Tensor, targets: Tensor) -> Tensor:
    """z_t - z_y, (B,)."""
    both = logits.gather(1, torch.stack([targets, labels], dim=1))
    return both[:, 0] - both[:, 1]


@torch.no_grad()
def _ranks(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Classes of each sample (B,K): its label, then the others, the likeliest first."""
    own_first = model(x).scatter(1, y[:, None], math.inf)
    return own_first.argsort(dim=1, descending=True, stable=True)


def _targets(model: nn.Module, x: Tensor, ranks: Tensor, norm: str) -> Tensor:
    """Classes to aim at, (B, min(MAX_TARGETS, K-1)): the likeliest, or of MANY classes those that MALT
    (Melamed et al. 2024) puts first.

    It orders them by how far the boundary would be if the network were linear:
    (z_y - z_t) / |grad z_t - grad z_y|, in the norm that is dual to that of the ball.
    """
    others = ranks[:, 1:]
    if ranks.shape[1] < MANY:
        return others[:, :MAX_TARGETS]
    others, away = others[:, :CANDIDATES], []
    for target in others.T:
        grad, gap, _ = slope(model, x, partial(_towards, labels=ranks[:, 0], targets=target))
        away.append(-gap / distance(grad, DUAL[norm]).clamp_min(1e-12))  # no gradient: far away
    return others.gather(1, torch.stack(away, dim=1).argsort(dim=1, stable=True)[:, :MAX_TARGETS])
