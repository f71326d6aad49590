"""What a weight is worth: scores shaped like the weights, the lowest go first. A group is worth the sum over
its weights."""
from collections.abc import Callable, Mapping

from torch import Tensor

Weights = Mapping[str, Tensor]
Slopes = Callable[[], Weights]  # asked for only by a criterion that needs the loss's gradient by weight
Criterion = Callable[[Weights, Slopes], dict[str, Tensor]]


def magnitude(weights: Weights, _slopes: Slopes = dict) -> dict[str, Tensor]:
    """w^2, so that a group is worth its squared L2 norm (Han et al. 2015; Jian et al. 2022, sec. IV-A).

    float64 where the device has it: in float32 the squares of weights below 1e-23 are all 0, and of those
    above 1.8e19 all infinite.
    """
    return {name: _wide(w.detach()).square() for name, w in weights.items()}


def _wide(weight: Tensor) -> Tensor:
    return weight if weight.device.type == "mps" else weight.double()  # no float64 there


CRITERIA: dict[str, Criterion] = {"magnitude": magnitude}
