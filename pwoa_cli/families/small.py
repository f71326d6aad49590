"""Small networks for MNIST and its like: LeNets of two convolutions and two linear layers, the SmallCNN of TRADES."""
import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from pwoa_cli.families.base import Family, Guess, State


def _named(name: str, module: nn.Module) -> tuple[str, nn.Module]:
    """A child for a key prefix that may have a dot in it: l1.fc is a Sequential l1 with a child fc."""
    first, _, rest = name.partition(".")
    return first, nn.Sequential(OrderedDict({rest: module})) if rest else module


def lenet_side(size: int, *, kernel: int, padded: bool) -> int:
    """Side of the image that reaches the linear layers of `LeNet`, for inputs of side `size`."""
    cut = 0 if padded else kernel - 1
    return ((size - cut) // 2 - cut) // 2


class LeNet(nn.Module):
    """Two convolutions and two linear layers with ReLU, the small MNIST networks of the field.

    advertorch's LeNet5 is widths (32, 64), hidden 200, kernel 3. Args: in_channels, size: input (B, in_channels, size,
    size) in [0,1]; kernel: odd; padded: keep the size in convolutions; heads: key prefixes of the linear layers.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1, size: int = 28, widths: Sequence[int] = (32, 64),
                 hidden: int = 200, kernel: int = 3, padded: bool = True, heads: Sequence[str] = ("linear1", "linear2")):
        super().__init__()
        padding = kernel // 2 if padded else 0
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel, padding=padding)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(widths[0], widths[1], kernel, padding=padding)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        features = widths[1] * lenet_side(size, kernel=kernel, padded=padded) ** 2
        first, second = _named(heads[0], nn.Linear(features, hidden)), _named(heads[1], nn.Linear(hidden, num_classes))
        self.add_module(*first)
        self.relu3 = nn.ReLU()
        self.add_module(*second)
        self.heads = (first[0], second[0])

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.relu3(getattr(self, self.heads[0])(x.flatten(1)))
        return getattr(self, self.heads[1])(x)


class SmallCNN(nn.Module):
    """The MNIST network of TRADES (Zhang et al. 2019): four 3x3 convolutions, three linear layers, input (B, C, 28, 28)."""

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1):
        super().__init__()
        self.feature_extractor = nn.Sequential(OrderedDict(
            conv1=nn.Conv2d(in_channels, 32, 3), relu1=nn.ReLU(), conv2=nn.Conv2d(32, 32, 3), relu2=nn.ReLU(),
            maxpool1=nn.MaxPool2d(2),
            conv3=nn.Conv2d(32, 64, 3), relu3=nn.ReLU(), conv4=nn.Conv2d(64, 64, 3), relu4=nn.ReLU(), maxpool2=nn.MaxPool2d(2)))
        self.classifier = nn.Sequential(OrderedDict(
            fc1=nn.Linear(64 * 16, 200), relu1=nn.ReLU(), drop=nn.Dropout(0.5), fc2=nn.Linear(200, 200), relu2=nn.ReLU(),
            fc3=nn.Linear(200, num_classes)))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.feature_extractor(x).flatten(1))


def _identify_lenet(state: State) -> Guess | None:
    convs = ("conv1", "conv2")
    heads = [k.removesuffix(".weight") for k, t in state.items() if k.endswith(".weight") and t.ndim == 2]
    keys = {f"{name}.{kind}" for name in (*convs, *heads) for kind in ("weight", "bias")}
    if len(heads) != 2 or keys != set(state) or len({name.split(".")[0] for name in heads}) == 1:  # fc.0, fc.2: what is fc.1?
        return None
    if state[f"{heads[1]}.weight"].shape[1] != state[f"{heads[0]}.weight"].shape[0]:  # a .safetensors file sorts its keys
        heads.reverse()
    conv1, conv2, first, second = (tuple(state[f"{name}.weight"].shape) for name in (*convs, *heads))
    if len(conv1) != 4 or len(conv2) != 4 or second[1] != first[0]:
        return None
    kernel, guess = conv1[2], 4 * math.isqrt(first[1] // conv2[0])
    tried = ((28, True), (32, True), (28, False), (32, False), (guess, True))  # (side of the images, padded)
    fitting = [(s, p) for s, p in tried if kernel % 2 and conv2[0] * lenet_side(s, kernel=kernel, padded=p) ** 2 == first[1]]
    if not fitting:
        return None
    size, padded = fitting[0]
    options = {"num_classes": second[0], "in_channels": conv1[1], "size": size, "widths": [conv1[0], conv2[0]],
               "hidden": first[0], "kernel": kernel, "padded": padded, "heads": heads}
    others = tuple({"size": s, "padded": p} for s, p in dict.fromkeys(fitting[1:]))
    evidence = f"the keys conv1, conv2, {', '.join(heads)}: {conv1[1]}-{conv1[0]}-{conv2[0]} {kernel}x{kernel}, " \
        f"{first[1]}-{first[0]}-{second[0]}"
    return Guess("lenet5", options, (conv1[1], size, size), evidence, others)


def _identify_small_cnn(state: State) -> Guess | None:
    needed = {"feature_extractor.conv1.weight": 4, "feature_extractor.conv4.weight": 4, "classifier.fc3.weight": 2}
    if any(k not in state or state[k].ndim != n for k, n in needed.items()):
        return None
    channels, classes = state["feature_extractor.conv1.weight"].shape[1], state["classifier.fc3.weight"].shape[0]
    evidence = "the keys feature_extractor.conv1..4, classifier.fc1..3 (TRADES)"
    return Guess("smallcnn", {"num_classes": classes, "in_channels": channels}, (channels, 28, 28), evidence)


LENET = Family("lenet5", LeNet, _identify_lenet, keys="conv1, conv2 (with bias) and two linear layers of any names",
               origin="advertorch LeNet5; the LeNets of MNIST tutorials")
SMALL_CNN = Family("smallcnn", SmallCNN, _identify_small_cnn, keys="feature_extractor.conv1..4, classifier.fc1..3", origin="TRADES")
