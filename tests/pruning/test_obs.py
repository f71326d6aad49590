"""Layerwise reconstruction against least squares, removal of single weights, and the layer's own outputs."""
import copy

import pytest
import torch
from helpers.plans import project
from torch import nn

from pwoa_cli.pruning import obs


def test_reconstruction_is_least_squares():
    """Against lstsq on the inputs themselves, mask fixed: the outputs' error is the least possible."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 7, generator=g).double() @ torch.randn(7, 7, generator=g).double()
    w = torch.randn(4, 7, generator=g).double()
    keep = torch.rand(4, 7, generator=g) > 0.5
    made = obs.reconstruct(w, x.T @ x / len(x), keep)
    for row, mask, dense in zip(made, keep, w, strict=True):
        want = torch.linalg.lstsq(x[:, mask], (x @ dense)[:, None]).solution.flatten()
        assert torch.allclose(row[mask], want, atol=1e-9) and not row[~mask].any()


def test_saliency_is_what_one_weight_less_costs():
    """Hassibi & Stork 1993, eq. 5: w_i^2 / [H^-1]_ii = the error after the best answer to losing weight i."""
    g = torch.Generator().manual_seed(1)
    x, w = torch.randn(40, 6, generator=g).double(), torch.randn(2, 6, generator=g).double()
    h, keep = x.T @ x / len(x), torch.ones(2, 6, dtype=torch.bool)
    keep[1, 4] = False
    lost = w.clone()
    lost[1, 4] = 0
    lost = obs.reconstruct(lost, h, keep)
    saliency = obs.saliency_of(lost, h, keep)
    assert saliency[1, 4] == -1
    for i in range(6):
        less = torch.ones(6, dtype=torch.bool)
        less[i] = False
        error = (x @ (obs.reconstruct(lost[:1], h, less[None])[0] - lost[0])).square().mean()
        assert saliency[0, i].item() == pytest.approx(error.item(), rel=1e-9)


@pytest.mark.parametrize("layer", [
    nn.Linear(6, 5), nn.Conv2d(4, 6, 3, padding=1, stride=2),
    nn.Conv2d(4, 6, (3, 2), groups=2, bias=False, dilation=2),
    nn.Conv2d(4, 6, (5, 3), padding="same"), nn.Conv2d(4, 4, 3, groups=4, padding="valid")])
def test_a_pruned_layer_keeps_its_outputs_better_than_magnitude(layer):
    torch.manual_seed(0)
    layer.reset_parameters()
    shape = (256, 6) if isinstance(layer, nn.Linear) else (16, 4, 12, 12)
    # correlated, and not around 0
    x = torch.randn(shape).cumsum(-1) + torch.randn(shape).mean(1, keepdim=True) + 2
    zero_count = layer.weight.numel() // 2
    made = obs.reconstructed(nn.Sequential(layer), {"0.weight": zero_count}, [x[:10], x[10:]], normed=set())
    assert made.keys() == {"0.weight", "0.bias"} if layer.bias is not None else {"0.weight"}
    assert made["0.weight"].shape == layer.weight.shape and int((made["0.weight"] == 0).sum()) == zero_count

    def change(weight, bias):
        changed = copy.deepcopy(layer)
        changed.weight.data = weight
        if bias is not None:
            changed.bias.data = bias
        return changed(x) - layer(x)

    def error(weight, bias=layer.bias):
        return change(weight, bias).square().mean().item()

    with torch.no_grad():
        patches = obs.patches_of(layer, x)
        rows = layer.weight.reshape(len(patches), -1, patches.shape[-1])
        # (groups, n, out): the layer's own outputs, so the patches are what it multiplies
        out = patches @ rows.mT
        want = layer(x) - (0 if layer.bias is None else layer.bias.view(-1, *[1] * (x.ndim - 2)))
        shaped = (want[None] if isinstance(layer, nn.Linear)
                  else want.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 4, 2).flatten(1, 3))
        assert torch.allclose(out, shaped, atol=1e-4)
        assert error(made["0.weight"], made.get("0.bias")) < 0.7 * error(project(layer.weight, zero_count))
        if layer.bias is not None and isinstance(layer, nn.Linear):
            assert change(made["0.weight"], made["0.bias"]).mean(0).abs().max() < 1e-4  # the mean stays


class Own(nn.Linear):
    """A linear layer by its class and by its shape, but not by what it does."""

    def forward(self, x):
        return super().forward(x).square()


class Attention(nn.Module):
    """nn.MultiheadAttention reads out_proj's weight without calling it."""

    def __init__(self):
        super().__init__()
        self.first, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.own = Own(8, 8)

    def forward(self, x):
        x = self.first(input=x)
        return self.own(self.attention(x, x, x)[0])


def test_layers_that_do_not_multiply_their_inputs_are_left_to_magnitude():
    torch.manual_seed(0)
    model = Attention().train()
    names = ("first.weight", "attention.out_proj.weight", "own.weight")
    made = obs.reconstructed(model, dict.fromkeys(names, 30), [torch.rand(16, 4, 8)], normed=set())
    assert made.keys() == {"first.weight", "first.bias"} and int((made["first.weight"] == 0).sum()) == 30
    assert not obs.supported(model.own) and obs.supported(model.first) and obs.supported(nn.Conv2d(1, 1, 3))
    patched = nn.Conv2d(1, 1, 3)
    patched.forward = lambda x: x
    reflected = nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")
    assert not obs.supported(patched) and not obs.supported(reflected)
    assert obs.reconstructed(model, {"own.weight": 3}, [torch.rand(16, 4, 8)], normed=set()) == {}


def test_inputs_are_centred_where_a_batch_norm_takes_the_mean_off():
    """Far from 0 all inputs look alike: only around their mean is it seen which of them matter."""
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 8, bias=False), torch.randn(512, 12) * torch.linspace(0.1, 2, 12) + 5

    def spread(normed):
        made = obs.reconstructed(nn.Sequential(layer), {"0.weight": 48}, [x], normed=normed)["0.weight"]
        lost = x @ (layer.weight.detach() - made).T
        return (lost - lost.mean(0)).square().mean().item(), lost.square().mean().item()

    centred, plain = spread({"0.weight"}), spread(set())
    assert centred[0] < 0.9 * plain[0] and plain[1] < 0.9 * centred[1]


def test_large_layers_go_in_portions_and_skip_early_steps(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(),
                          nn.Linear(8 * 16, 5))
    zero_counts, x = {"0.weight": 100, "1.weight": 200, "3.weight": 600}, [torch.rand(32, 3, 8, 8)]
    portions, moments = [], obs.input_moments
    monkeypatch.setattr(obs, "input_moments", lambda model, layers, batches: (
        portions.append(list(layers)) or moments(model, layers, batches)))
    whole = obs.reconstructed(model, zero_counts, x, normed={"0.weight"})
    assert portions == [["0.weight", "1.weight", "3.weight"]]
    portions.clear()
    monkeypatch.setattr(obs, "ENTRIES", 27**2 + 2 * 36**2)
    parts = obs.reconstructed(model, zero_counts, x, normed={"0.weight"})
    assert portions == [["0.weight", "1.weight"], ["3.weight"]]
    assert whole.keys() == parts.keys() == {"0.weight", "1.weight", "1.bias", "3.weight", "3.bias"}
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    monkeypatch.setattr(obs, "CUBES", 0)
    at_once = obs.reconstructed(model, zero_counts, x, normed=set())
    assert {n: int((w == 0).sum()) for n, w in at_once.items() if n in zero_counts} == zero_counts
    assert not torch.equal(whole["3.weight"], at_once["3.weight"])


def test_inputs_far_from_zero_keep_their_variance():
    """Mean 1000, deviation 1: E x^2 - (E x)^2 of float32 sums rounds a weak direction's variance away.
    Against moments of the same inputs in float64, and through `reconstructed`, whose Cholesky needs them."""
    g = torch.Generator().manual_seed(0)
    layer = nn.Linear(24, 8)
    batches = [1000 + torch.randn(200, 24, generator=g) for _ in range(3)]
    (mean, second), = obs.input_moments(nn.Sequential(layer), {"0": layer}, batches).values()
    x = torch.cat(batches).double()
    torch.testing.assert_close(mean[0], x.mean(0), rtol=1e-9, atol=0)
    covariance = second[0] - mean[0][:, None] * mean[0]
    torch.testing.assert_close(covariance, x.T.cov(correction=0), rtol=0, atol=1e-4)
    made = obs.reconstructed(nn.Sequential(layer), {"0.weight": 150}, batches, normed=set())
    assert int((made["0.weight"] == 0).sum()) == 150 and made["0.weight"].isfinite().all()
