"""What a weight is worth: scores shaped like the weights, the lowest go first. A group is worth the sum over
its weights."""
from collections.abc import Callable, Mapping

from torch import Tensor

Weights = Mapping[str, Tensor]
Slopes = Callable[[], Weights]  # asked for only by a criterion that needs the loss's gradient by weight
Criterion = Callable[[Weights, Slopes], dict[str, Tensor]]


def magnitude(weights: Weights, _slopes: Slopes = dict) -> dict[str, Tensor]:
    """w^2, so that a group is worth its squared L2 norm (Han et al. 2015; Jian et al. 2022, sec. IV-A)."""
    return {name: w.detach().square() for name, w in weights.items()}


CRITERIA: dict[str, Criterion] = {"magnitude": magnitude}
