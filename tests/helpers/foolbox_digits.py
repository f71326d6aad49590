"""Real digits, and foolbox to attack them: the oracle of the attacks that it has too."""
import warnings
from functools import cache
from pathlib import Path

import torch

from pwoa_cli.checkpoints.model import load_model
from pwoa_cli.data import datasets

EXAMPLES = Path(__file__).parents[2] / "examples"


@cache
def load():
    """The bundled robust LeNet, 20 MNIST test images in float32 and their labels."""
    model = load_model(str(EXAMPLES / "mnist_lenet_linf0.3.pt")).model.eval().requires_grad_(False)
    x, y = datasets.load(str(EXAMPLES / "data")).test.batch(torch.arange(20))
    return model, x, y


def run(attack, model, x, y, **options):
    """Adversarial inputs of an attack, which is made of the module foolbox: slow to import, and it warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox
        criterion = foolbox.criteria.Misclassification(y)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        found = attack(foolbox).run(wrapped, x, criterion, **options)
    return found.detach()
