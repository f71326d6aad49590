"""What a checkpoint's weights are: dead ones apart, tied ones once."""
from pathlib import Path

import torch
from helpers.workflow_calls import described

from pwoa_cli.networks.build import build
from pwoa_cli.networks.families.wide import WideResNet
from pwoa_cli.reports import checkpoint


def test_dead_weights_are_counted_apart(here):
    net = WideResNet(blocks=[1, 1, 1], widths=[4, 4, 4], stem=4, sub_block1=True, num_classes=4)
    torch.save(net.state_dict(), "wide.pt")
    made = described("wide.pt")
    dead = sum(p.numel() for name, p in net.named_parameters()
               if name.startswith("sub_block1") and p.ndim > 1)
    assert made["weights"]["dead"] == dead > 0
    assert made["weights"]["total"] + dead == sum(p.numel() for p in net.parameters() if p.ndim > 1)
    assert made["notes"] == [f"{dead:,} weights never reach the logits (sub_block1.layer.0.conv1.weight, "
                             "sub_block1.layer.0.conv2.weight): they do not count for sparsity and are not "
                             "pruned"]
    assert "| sub_block1.layer.0.conv1.weight | 4x4x3x3 | 144 | dead |" in checkpoint.markdown(made)


def test_tied_weights_are_alive_and_count_once(here):
    Path("tied.py").write_text("""
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.fc = nn.Linear(64, 4)
        self.b.weight = self.a.weight
    def forward(self, x):
        return self.fc(self.b(self.a(x.flatten(1)).relu()).relu())
""")
    net = build("tied.py:Net", {})
    torch.save(net.state_dict(), "tied.pt")
    made = described("tied.pt", arch="tied.py:Net")
    total = 64 * 64 + 256
    assert made["weights"] == {"total": total, "nonzero": total, "dead": 0, "sparsity": 0.0}
    assert made["num_classes"] == 4
