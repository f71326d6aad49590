"""Keys and shapes of the libraries' networks."""
from pwoa_cli.checkpoints import signatures_build

SHARED = ["torchvision:resnet18", "timm:resnet18", "timm:resnetblur18", "timm:test_efficientnet_gn",
          "timm:test_efficientnet_ln"]


def shapes(name, **options):
    """{key: shape} of a network with 7 classes."""
    net = signatures_build.without_memory(name, {"num_classes": 7} | options)
    return {k: tuple(t.shape) for k, t in net.state_dict().items()}
