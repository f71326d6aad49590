"""examples/cifar10_resnet18_linf8_90.safetensors, the network that comes with pwoa, is what README says."""
import hashlib
import re
from pathlib import Path

import torch

import pwoa_cli
from pwoa_cli.reports import schema

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


def test_the_report_beside_it_is_of_this_very_file_and_says_what_the_pages_say():
    report = schema.read(RELEASED.with_suffix(".json"))
    assert report["models"]["model"]["sha256"] == hashlib.sha256(RELEASED.read_bytes()).hexdigest()
    assert report["threat"] == {"norm": "linf", "eps": 8 / 255} and not report["findings"]
    worst = [100 * report[who]["worst case"]["accuracy"] for who in ("teacher", "student")]
    n, drop = report["data"]["n"], report["drop"]["worst case"]
    assert f"{worst[0]:.1f} -> {worst[1]:.1f}% of {n}" in (ROOT / "README.md").read_text()
    low, high = drop["ci95"]
    assert (f"worst of PGD-20 and CW {worst[0]:.1f} -> {worst[1]:.1f}, drop {drop['points']:.1f} "
            f"[{low:.1f}, {high:.1f}], {drop['lost']} images lost and {drop['won']} won"
            ) in (ROOT / "docs/results.md").read_text()
