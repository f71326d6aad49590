"""What the saved student is made of when training is over: an average of its weights, and batch-norm
statistics taken again.

    e_n = sum_i d^(n-i) w_i / sum_i d^(n-i)     moving average of w_1 .. w_n (Polyak & Juditsky 1992), without
                                                the pull of a start value (the bias correction of Kingma & Ba
                                                2015, sec. 3)
"""
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def moved(average: Mapping[str, Tensor], model: nn.Module, *, decay: float, count: int) -> dict[str, Tensor]:
    """The average with the model's present weights and statistics as its `count`-th member (from 1 on).

    e <- e + (w - e) (1 - d) / (1 - d^count), so the first member is the average. Counters (integers) are not
    averaged but replaced. An entry that is +0.0 in every member is +0.0 in the average: masks hold.
    Args: average: what the last call returned; not read if count is 1. decay: 0 <= d < 1.
    """
    share = (1 - decay) / (1 - decay**count)
    state = {name: t.detach() for name, t in model.state_dict().items()}
    if count == 1:
        return {name: t.clone() for name, t in state.items()}
    moving = [name for name, t in state.items() if t.is_floating_point()]
    sums = torch._foreach_lerp([average[name] for name in moving], [state[name] for name in moving], share)
    found = {name: t.clone() for name, t in state.items() if not t.is_floating_point()}
    return found | dict(zip(moving, sums, strict=True))


def reestimate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Batch-norm statistics as the plain mean, over the batches, of each batch's mean and unbiased variance.

    Izmailov et al. 2018, sec. 3.2. Everything but the batch norms is in eval mode meanwhile; the model comes
    back in eval mode. Args: batches: inputs (B, C, H, W), at least one.
    """
    norms = [m for m in model.eval().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.train().momentum = None  # a cumulative mean
    with torch.no_grad():
        for x in batches:
            model(x)
    model.eval()
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
