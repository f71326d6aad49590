"""Plans of training runs, and masks and quotas of single weights, without a command around them."""
import copy
from dataclasses import replace

import torch
from torch import nn

from pwoa_cli.data import datasets
from pwoa_cli.pruning import admm, allocation
from pwoa_cli.pruning.criteria import magnitude
from pwoa_cli.pruning.groups import kept, masks, regrown, scores_by_layer, structure_of
from pwoa_cli.training import loop
from pwoa_cli.training import masks as training_masks
from pwoa_cli.training.recipe import Recipe
from pwoa_cli.training.state import Plan, plan_steps

# a recipe in which every term of the loss counts
EVERYTHING = {"noise": "blocks+gaussian", "noise_scale": 1.0, "gaussian_scale": 0.1, "hidden_weight": 1.0,
              "hidden_loss": "channels", "logit_weight": 0.5, "explain_weight": 0.3, "neighbour_weight": 0.2,
              "clean_weight": 0.4, "lambda_x": 0.1, "lambda_y": 0.2}


# --- plans and runs ---------------------------------------------------------------------------------------

class Net(nn.Module):
    """conv-bn-relu, dropout, linear: every kind of state that a step can touch."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()
        self.drop, self.fc = nn.Dropout(0.1), nn.Linear(6 * 36, 3)

    def forward(self, x):
        return self.fc(self.drop(self.relu(self.bn(self.conv(x)))).flatten(1))


def make_plan(*, structure="unstructured", sparsity=0.8, **fields):
    """A plan of 16 steps on 64 images, and a student like its teacher. Args: fields: of the recipe."""
    torch.manual_seed(0)
    recipe = replace(Recipe(batch_size=16, epochs=4, noise="sign", lr=1e-2, mask_updates=4), **fields)
    model = Net().eval()
    split = datasets.Split(images=torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8),
                           labels=torch.arange(64) % 3)
    weights = ("conv.weight",) if structure == "filter" else ("conv.weight", "fc.weight")
    plan = plan_for(model, teacher=model, recipe=recipe, split=split, sparsity=sparsity, weights=weights,
                    companions={"conv.weight": ("bn.weight", "bn.bias")}, structure=structure,
                    hidden=("relu",), num_classes=3)
    return plan, copy.deepcopy(model)


def finish(plan, state):
    """The state after the last step, its student as it is saved."""
    return loop.run(plan, state, report=lambda state, losses: None)


def zeros(state, names):
    """(zeros, entries) of these parameters together."""
    parameters = dict(state.student.named_parameters())
    return sum(int((parameters[n] == 0).sum()) for n in names), sum(parameters[n].numel() for n in names)


def on_move(monkeypatch, look):
    """Let `look(state, found, slopes)` see each move of the masks before its step goes on: the state with the
    masks that it had, its student cut already; the masks found; a function that gives the gradients."""
    move = training_masks.moved

    def moved(plan, state, sparsity, slopes):
        found = move(plan, state, sparsity, slopes)
        look(state, found, slopes)
        return found

    monkeypatch.setattr(training_masks, "moved", moved)


def plan_for(student, *, teacher, recipe, split, sparsity, weights, companions=None, coupled=None,
             structure="unstructured", hidden, num_classes, eps=0.1, norm="linf", augment="none", seed=0):
    """A plan for a student. Args: weights: names of what is pruned. companions: what falls silent with it.
    coupled: its channels."""
    parameters, companions = dict(student.named_parameters()), companions or {}
    per_epoch, sparsify_steps, steps = plan_steps(recipe, len(split), sparsity)
    pruned = {name: parameters[name] for name in weights}
    groups = structure_of(structure).groups(pruned, companions, {}, coupled or rows_alone(pruned))
    return Plan(recipe=recipe, teacher=teacher, hidden=tuple(hidden), groups=groups,
                normed=frozenset(companions), sparsity=sparsity, num_classes=num_classes, eps=eps, norm=norm,
                split=split, augment=augment, seed=seed,
                steps_per_epoch=per_epoch, sparsify_steps=sparsify_steps, steps=steps)


# --- single weights ---------------------------------------------------------------------------------------

def groups_of(weights, structure="unstructured"):
    """Groups by layer of weights by name, without companions."""
    return structure_of(structure).groups(weights, {}, {}, rows_alone(weights))


def rows_alone(weights):
    """Channels that nobody reads: the rows of each weight."""
    return {name: {name: {0: range(len(w))}} for name, w in weights.items()}


def strength(weight, structure="unstructured"):
    """Squared norm (G,) of each group of one weight."""
    return groups_of({"w": weight}, structure)["w"].scores(magnitude({"w": weight}))


def weight_scores(weights, structure="unstructured"):
    """The same (G,) by layer."""
    return scores_by_layer(groups_of(weights, structure), magnitude(weights))


def keep_mask(weight, lost, structure="unstructured"):
    """Mask of one weight without its `lost` groups of least norm."""
    groups = groups_of({"w": weight}, structure)
    return masks(groups, kept(groups, weight_scores({"w": weight}, structure), {"w": lost}))["w"]


def regrown_mask(weight, gradient, lost, structure="unstructured", *, fraction):
    """The same where a fraction of the kept groups makes room for those of the largest gradient."""
    flags = regrown(strength(weight, structure), strength(gradient, structure), lost, fraction=fraction)
    return masks(groups_of({"w": weight}, structure), {"w": flags})["w"]


def quotas(weights, sparsity, *, method, structure="unstructured", curves=None):
    """Groups that each weight loses, by magnitude."""
    worth = weight_scores(weights, structure)
    return allocation.quotas(groups_of(weights, structure), worth, sparsity, method=method, curves=curves)


def curves_of(weights, structure="unstructured"):
    """Curves of damage by layer whose second half of groups is twice as dear as the first."""
    counts = {name: group.count for name, group in groups_of(weights, structure).items()}
    return {name: [(0, 0.0), (count // 2, 1.0), (count - 1, 3.0)] for name, count in counts.items()}


def project(weight, lost, structure="unstructured"):
    """The nearest tensor without `lost` of its groups."""
    return admm.project({"w": weight}, groups_of({"w": weight}, structure), {"w": lost})["w"]


def no_slopes():
    """For what must not ask for gradients."""
    raise AssertionError("gradients were asked for")


def whole(shape):
    """A mask that keeps everything."""
    return torch.ones(shape, dtype=torch.bool)
