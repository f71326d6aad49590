"""Random noise as an attack: what a model loses in the ball when nobody looks at its gradient.

x clean inputs (B,C,H,W) in [0,1], y labels (B,), eps > 0 radius of the ball |adv - x|_norm <= eps.
"""
import torch
from torch import Generator, Tensor, nn

from pwoa_cli.attacks.base import project, wrong

TRIES = 20


@torch.no_grad()
def noise(model: nn.Module, inputs: Tensor, labels: Tensor, *, norm: str, eps: float,
          generator: Generator) -> Tensor:
    """Random signs of size eps, moved into the ball and into [0,1]: the first of 20 draws that is
    misclassified.

    Returns: (B,C,H,W) like inputs; the clean input where no draw is misclassified.
    """
    result, standing = inputs.clone(), torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)
    for _ in range(TRIES):
        signs = torch.randint(2, inputs.shape, generator=generator,
                              device=generator.device).to(inputs) * 2 - 1
        adv = project(inputs + eps * signs, inputs, eps=eps, norm=norm)
        broken = standing & wrong(model(adv), labels)
        result[broken] = adv[broken]
        standing &= ~broken
    return result
