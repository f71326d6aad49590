"""Folded weights against the modules that the parametrisations come from, and against slow oracles of the
papers' formulas."""
import argparse
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from pwoa_cli.checkpoints.parametrisations import fold, harp_rate, score_mask
from pwoa_cli.checkpoints.state_dict import read_state_dict
from pwoa_cli.errors import InputError


def two(first):
    """A network of two layers, the first one of which is given."""
    return nn.Sequential(first, nn.Flatten(), nn.Linear(3, 2)).eval()


def refused(state, extra=(), **options):
    with pytest.raises(InputError) as caught:
        fold(state, dict(extra), **options)
    assert caught.value.hint
    return caught.value


# --- masks ---------------------------------------------------------------

def test_torch_pruning_is_folded_to_what_its_hooks_compute():
    layer = nn.Conv2d(2, 3, 3)
    prune.random_unstructured(layer, "weight", amount=0.5)
    prune.random_unstructured(layer, "bias", amount=1)
    state, notes = fold(two(layer).state_dict(), {})
    assert list(state) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert torch.equal(state["0.weight"], layer.weight) and torch.equal(state["0.bias"], layer.bias)
    assert notes == ("folded: masks (torch.nn.utils.prune) of 2 tensors, 49.1% of 57 weights are zero",)


@pytest.mark.parametrize(("weight", "mask"), [
    ("weight", "weight_mask"), ("weight", "mask"), ("weight_orig", "weight_mask")])
def test_masks_beside_their_weight(weight, mask):
    values, kept = torch.tensor([[1.0, float("inf")], [3.0, 4.0]]), torch.tensor([[1, 0], [0, 1]])
    for kind in (torch.bool, torch.float32, torch.uint8):
        state, _ = fold({f"fc.{weight}": values, f"fc.{mask}": kept.to(kind), "fc.bias": torch.ones(2)}, {})
        assert state.keys() == {"fc.weight", "fc.bias"} and state["fc.weight"].tolist() == [[1, 0], [0, 4]]


def test_masks_of_another_kind_stay():
    state = {"attn.mask": torch.ones(1, 4, 4), "attn.weight": torch.ones(4, 4),
             "fc.mask": torch.full((2, 2), 0.5), "fc.weight": torch.ones(2, 2), "head_mask": torch.ones(3),
             "pos_weight_mask": torch.ones(2)}
    folded, notes = fold(state, {})
    assert folded.keys() == state.keys() and not notes


def test_masks_that_do_not_fit():
    assert "fc.weight_mask has shape (2,), expected (2, 2)" in refused(
        {"fc.weight_orig": torch.ones(2, 2), "fc.weight_mask": torch.ones(2)}).message
    assert "fc.weight_orig has no fc.weight_mask" in refused({"fc.weight_orig": torch.ones(2, 2)}).message


# --- norms ---------------------------------------------------------------

@pytest.mark.parametrize("layer", [nn.Conv2d(2, 3, 3), nn.Linear(5, 4), nn.ConvTranspose2d(2, 3, 3)])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_old_and_new(layer, dim):
    new = parametrizations.weight_norm(type(layer)(*arguments(layer)), dim=dim or 0)
    state, notes = fold(new.state_dict(), {})
    torch.testing.assert_close(state["weight"], new.weight, rtol=1e-6, atol=1e-7)
    assert state.keys() == {"weight", "bias"} and "parametrizations of 1 tensors" in notes[0]
    with pytest.warns(FutureWarning):
        old = nn.utils.weight_norm(layer, dim=dim)
    with torch.no_grad():
        old.weight_g.mul_(2)
    x = torch.rand(1, 2, 5, 5) if layer.weight.ndim == 4 else torch.rand(1, 5)
    old(x)  # the hook computes the weight
    state, _ = fold(old.state_dict(), {})
    torch.testing.assert_close(state["weight"], old.weight, rtol=1e-6, atol=1e-7)
    nn.utils.remove_weight_norm(layer)


def arguments(layer):
    return (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else \
        (layer.in_channels, layer.out_channels, layer.kernel_size)


@pytest.mark.parametrize("make", [
    lambda: nn.Conv2d(2, 3, 3), lambda: nn.Linear(5, 4), lambda: nn.ConvTranspose2d(2, 5, 3)])
@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, parametrizations.spectral_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_spectral_norm_as_in_eval_mode(make, norm):
    layer = norm(make())
    x = torch.rand(1, 2, 5, 5) if layer.weight.ndim == 4 else torch.rand(1, 5)
    layer(x)
    layer.eval()(x)
    state, notes = fold(layer.state_dict(), {})
    assert state.keys() == {"weight", "bias"} and "of 1 tensors" in notes[0]
    torch.testing.assert_close(state["weight"], layer.weight, rtol=1e-6, atol=1e-7)


class Masked(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x):
        return x * self.mask


def test_masks_and_norms_one_after_another():
    layer = parametrizations.spectral_norm(nn.Linear(4, 4))
    parametrize.register_parametrization(layer, "weight", Masked(torch.eye(4)))
    net = two(layer)
    state, notes = fold(net.state_dict(), {})
    torch.testing.assert_close(state["0.weight"], net[0].weight)
    assert "75.0% of 16" in notes[0]
    gap = {k: t for k, t in net.state_dict().items() if "1.mask" in k or "original" in k}
    assert "the formula is not in the file" in refused(gap).message
    soft = {k.replace("1.mask", "0.mask"): 0.5 * t for k, t in net.state_dict().items()
            if "mask" in k or "original" in k}
    assert "the formula is not in the file" in refused(soft).message


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T


def test_formulas_that_are_not_in_the_file_are_named():
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    error = refused({"fc." + k: t for k, t in layer.state_dict().items()})
    assert "fc.weight is parametrised by original: the formula is not in the file" in error.message
    assert "remove_parametrizations" in error.hint
    orthogonal = parametrizations.orthogonal(nn.Linear(3, 3)).state_dict()
    assert "parametrised by 0.base, original" in refused(orthogonal).message
    old = {"weight_orig": torch.ones(2, 2), "weight_u": torch.ones(2)}
    assert "PyTorch before 1.0" in refused(old).message
    odd = {"weight_g": torch.ones(3, 1), "weight_v": torch.ones(2, 2)}
    assert "which is no norm of (2, 2)" in refused(odd).message
    wrong = {"weight_orig": torch.ones(2, 2), "weight_u": torch.ones(3), "weight_v": torch.ones(2)}
    assert "not (2, 2)" in refused(wrong).message


# --- scores ---------------------------------------------------------------

def oracle(scores, rate, *, n):
    """The kept ones by a loop: sort ascending by (|score|, index), remove the first int((1 - rate) n)."""
    order = sorted(range(n), key=lambda i: (abs(scores[i]), i))
    removed = set(order[: int((1 - rate) * n)])
    return [0.0 if i in removed else 1.0 for i in range(n)]


@pytest.mark.parametrize("keep", [0.01, 0.05, 0.1, 0.3, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("n", [1, 10, 97, 1000])
@pytest.mark.parametrize("ties", [False, True])
def test_hydra_s_scores_are_an_oracle_s(keep, n, ties):
    scores = torch.randint(-3, 4, (n,)).float() if ties else torch.randn(n)
    assert score_mask(scores, keep).tolist() == oracle(scores.tolist(), keep, n=n)


def test_hydra_rounds_as_python_does():
    def kept(rate):
        return int(score_mask(torch.arange(10.0), rate).sum())

    assert kept(0.9) == 10, "int((1 - 0.9) * 10) is 0: 0.9999999999999998"
    assert kept(0.1) == 1
    assert kept(torch.tensor(0.9)) == 9, "1.0000000149 in float32, as HARP counts"


def hydra(scores="popup_scores"):
    return {"conv1.weight": torch.randn(4, 2, 3, 3), f"conv1.{scores}": torch.randn(4, 2, 3, 3),
            "fc.weight": torch.randn(5, 4), "fc.bias": torch.randn(5), f"fc.{scores}": torch.randn(5, 4)}


@pytest.mark.parametrize("scores", ["popup_scores", "scores"])
def test_hydra_s_network_is_folded_at_the_rate_of_the_user_or_the_file(scores):
    state = hydra(scores)
    folded, notes = fold(state, {}, density=0.25)
    assert list(folded) == ["conv1.weight", "fc.weight", "fc.bias"]
    for layer in ("conv1", "fc"):
        weight, score = state[f"{layer}.weight"], state[f"{layer}.{scores}"].flatten()
        expected = weight.flatten() * torch.tensor(oracle(score.tolist(), 0.25, n=score.numel()))
        assert torch.equal(folded[f"{layer}.weight"], expected.view(weight.shape))
    assert notes == (
        "folded: HYDRA popup_scores (keep 0.25, --keep) of 2 tensors, 75.0% of 92 weights are zero",)
    for extra in ({"k": 0.25}, {"args": argparse.Namespace(k=0.25)}, {"config": {"k": 0.25}}):
        same, notes = fold(state, extra)
        assert torch.equal(same["fc.weight"], folded["fc.weight"]) and "the file's settings" in notes[0]
    dense, _ = fold(state, {"k": 0.25}, density=1)
    assert torch.equal(dense["fc.weight"], state["fc.weight"])


@pytest.mark.parametrize("extra", [{}, {"k": 10}, {"k": True}, {"k": "0.1"}, {"args": None}])
def test_hydra_s_rate_is_asked_for(extra):
    error = refused(hydra(), extra)
    assert "popup_scores of 2 layers" in error.message
    assert "--keep 0.1" in error.hint and "--keep 1" in error.hint


@pytest.mark.parametrize("keep", [0, -1, 1.5, float("nan")])
def test_keep_is_a_fraction(keep):
    assert "--keep" in refused(hydra(), density=keep).message


def test_scores_of_another_shape_are_named():
    state = hydra() | {"fc.popup_scores": torch.ones(5, 3)}
    message = refused(state, density=0.5).message
    assert "fc.popup_scores has shape (5, 3), expected that of its weight, (5, 4)" in message


def harp(rates, **changes):
    return hydra() | {f"{layer}.k_score": torch.tensor(r)
                      for layer, r in zip(("conv1", "fc"), rates, strict=True)} | changes


@pytest.mark.parametrize("keep", [0.01, 0.1, 0.5])
def test_harp_keeps_a_rate_of_its_own_in_every_layer(keep):
    state = harp((-3.0, 0.7))
    folded, notes = fold(state, {}, density=keep)
    for layer, score in (("conv1", -3.0), ("fc", 0.7)):
        rate = 1 / (1 + math.exp(-score)) * (1 - 0.1 * keep) + 0.1 * keep
        assert float(harp_rate(torch.tensor(score), keep=keep)) == pytest.approx(rate, rel=1e-6)
        weight, scores = state[f"{layer}.weight"], state[f"{layer}.popup_scores"].flatten()
        expected = weight.flatten() * torch.tensor(oracle(scores.tolist(), rate, n=scores.numel()))
        assert torch.equal(folded[f"{layer}.weight"], expected.view(weight.shape))
    assert folded.keys() == {"conv1.weight", "fc.weight", "fc.bias"} and "HARP" in notes[0]


def test_harp_s_channels_by_a_loop():
    for shape, weight in (((1, 6, 1, 1), torch.randn(4, 6, 3, 3)), ((1, 6), torch.randn(4, 6))):
        scores = torch.tensor([0.5, -2.0, 0.1, 0.5, 1.0, 0.0]).view(shape)
        state = {"c.weight": weight, "c.popup_scores": scores, "c.k_score": torch.tensor(0.0)}
        # sigmoid(0) 0.98 + 0.02 = 0.51 of 6: 3 channels, of the tied ones the first
        folded, _ = fold(state, {}, density=0.2)
        for channel in range(6):
            expected = weight[:, channel] if channel in (0, 1, 4) else torch.zeros_like(weight[:, channel])
            assert torch.equal(folded["c.weight"][:, channel], expected)


def test_harp_s_target_is_worked_out_for_the_hint():
    keep, sizes = 0.05, (72, 20)
    share = [0.02, 0.1]  # rates; what is left of the target goes to the second layer
    share[1] = (keep * sum(sizes) - share[0] * sizes[0]) / sizes[1]
    rates = [(r - 0.1 * keep) / (1 - 0.1 * keep) for r in share]
    state = harp([math.log(r / (1 - r)) for r in rates])
    assert refused(state).hint.endswith("--keep 0.05")


def test_harp_s_pretraining_and_its_dense_copies():
    state = harp((1.0, 1.0))
    folded, notes = fold(state, {})
    assert torch.equal(folded["fc.weight"], state["fc.weight"]) and "every k_score is 1" in notes[0]
    bare = {k: t for k, t in state.items() if "popup" not in k}
    folded, notes = fold(bare, {})
    assert folded.keys() == {"conv1.weight", "fc.weight", "fc.bias"} and "k_score of 2 layers" in notes[0]


def test_plain_weights_stay_and_a_rate_without_scores_is_said():
    state = two(nn.Linear(3, 3)).state_dict()
    folded, notes = fold(state, {})
    assert list(folded) == list(state) and all(folded[k] is state[k] for k in state) and not notes
    assert fold(state, {}, density=0.5)[1] == ("--keep: no effect, the file has no scores",)


def test_file_is_named_and_prefixes_are_undone_first(tmp_path):
    path = tmp_path / "hydra.pt"
    torch.save({"state_dict": {f"module.{k}": t for k, t in hydra().items()}}, path)
    with pytest.raises(InputError, match="hydra.pt: popup_scores of 2 layers"):
        read_state_dict(path)
    state, _, notes = read_state_dict(path, keep=0.1)
    assert state.keys() == {"conv1.weight", "fc.weight", "fc.bias"}
    assert int(state["conv1.weight"].count_nonzero()) == 8
    assert notes[0] == "unwrapped: state_dict; prefix module." and "keep 0.1" in notes[1]
