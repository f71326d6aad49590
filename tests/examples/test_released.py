"""examples/cifar10_resnet18_linf8_90.safetensors, the network that comes with pwoa, is what README says."""
import re
from pathlib import Path

import torch

import pwoa_cli

ROOT = Path(__file__).parents[2]
RELEASED = ROOT / "examples/cifar10_resnet18_linf8_90.safetensors"


def test_the_released_network_is_what_readme_says():
    said = re.search(r"a ResNet-18 for CIFAR-10, (\d+)% zeros, ([\d.]+) MB instead of (\d+\.\d)",
                     (ROOT / "README.md").read_text())
    model = pwoa_cli.load(RELEASED)
    weights = [p for p in model.parameters() if p.dim() > 1]
    total, nonzero = (sum(int(count(w)) for w in weights) for count in (torch.numel, torch.count_nonzero))
    assert total == 11_164_352 and nonzero == 1_116_435 and round(100 * (1 - nonzero / total)) == int(said[1])
    dense = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert round(RELEASED.stat().st_size / 1e6, 1) == float(said[2])
    assert round(dense / 1e6, 1) == float(said[3])
    assert not model.training
    with torch.inference_mode():
        grey, noise = model(torch.full((1, 3, 32, 32), 0.5)), model(torch.rand(8, 3, 32, 32))
    assert noise.shape == (8, 10) and torch.isfinite(noise).all() and not torch.allclose(grey, noise[:1])
