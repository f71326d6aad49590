"""What settings in a file say of the threat that a network was trained against."""
import argparse
import math

import numpy as np
import pytest
import torch

from pwoa_cli.checkpoints.training_threat import threat_of

LINF = {"norm": "linf"}
ATTACK = {"norm": "Linf", "eps": "8/255", "steps": 10}


@pytest.mark.parametrize("norm", ["linf", "Linf", "L_inf", "l-inf", "inf", math.inf, np.inf, "Linf norm"])
@pytest.mark.parametrize("name", ["norm", "constraint", "attack_norm", "threat_model", "attack-norm"])
def test_norms_under_their_names(name, norm):
    assert threat_of({name: norm, "eps": 0.1}) == ("linf", 0.1)
    assert threat_of({"args": argparse.Namespace(**{name.replace("-", "_"): norm}), "epsilon": 0.1}) == (
        "linf", 0.1)


@pytest.mark.parametrize(("settings", "threat"), [
    ({"eps": "2.0", "norm": "l2"}, ("l2", 2.0)), ({"eps": 0.5, "constraint": "2"}, ("l2", 0.5)),
    ({"eps": 0.5, "norm": 2}, ("l2", 0.5)), ({"eps": 12, "norm": "L1"}, ("l1", 12.0)),
    ({"eps": 12, "norm": "l_1"}, ("l1", 12.0)), ({"eps": 12, "p_norm": 1}, ("l1", 12.0)),
    ({"eps": 12, "attack_norm": 1.0}, ("l1", 12.0)),
    # 1 may be a flag there, and another setting says the norm
    ({"eps": 8, "norm": 1, "constraint": "inf"}, ("linf", 8 / 255)),
    ({"eps": 0.5, "norm": True, "attack_norm": "l2"}, ("l2", 0.5)),
    ({"args": argparse.Namespace(epsilon=0.5, norm="L2")}, ("l2", 0.5)),
    # in 255ths: every image is within 8, or 128 of another in l2
    ({"eps": 8, "norm": "Linf"}, ("linf", 8 / 255)), ({"attack_eps": 128, "norm": "l2"}, ("l2", 128 / 255)),
    ({"epsilon": 1, "norm": "l_inf"}, ("linf", 1 / 255)),
    ({"eps": "8/255"} | LINF, ("linf", 8 / 255)), ({"eps": np.float64(0.3)} | LINF, ("linf", 0.3)),
    ({"eps": True, "epsilon": 0.3} | LINF, ("linf", 0.3)),
    ({"hyper_parameters": {"attack": {"eps": 4, "norm": "Linf"}}}, ("linf", 4 / 255)),
    # what is of an optimiser, a norm layer, clipping or smoothing displaces nothing, wherever it stands
    ({"attack": ATTACK, "model": {"bn": {"eps": 1e-3}}}, ("linf", 8 / 255)),
    ({"model": {"bn": {"eps": 1e-3}}, "attack": ATTACK, "optim": {"eps": 1e-3}}, ("linf", 8 / 255)),
    ({"attack": {"norm": "L2", "eps": 0.5}, "optimizer": {"eps": 1e-8, "name": "AdamW"}}, ("l2", 0.5)),
    ({"norm": "linf", "label_smoothing": {"epsilon": 0.1}, "attack": {"adv_eps": "8/255"}},
     ("linf", 8 / 255)),
    ({"norm": "L2", "eps": 0.5, "max_grad_norm": 1.0}, ("l2", 0.5)),
    ({"norm": "Linf", "eps": 1e-8, "epsilon": 8}, ("linf", 8 / 255)),  # Adam's beside it
    # the attack of training, not that of the test, and never half of each
    ({"train": {"attack": {"constraint": "2", "eps": 0.5}}, "test": {"attack": ATTACK}}, ("l2", 0.5)),
    ({"train_attack": ATTACK, "eval_attack": {"norm": "L2", "eps": 0.5}}, ("linf", 8 / 255)),
    ({"eval_attack": ATTACK}, ("linf", 8 / 255)),
    ({"args": {"norm": "Linf", "eps": 8}, "config": {"norm": "inf", "epsilon": 0.031}}, ("linf", 8 / 255))])
def test_threat_of_settings(settings, threat):
    assert threat_of(settings) == threat


@pytest.mark.parametrize("settings", [
    {"epsilon": 0.3}, {"args": {"eps": 0.1, "label_smoothing": True}}, {"eps": "8/255"},  # of what?
    {"eps": 1e-8} | LINF, {"eps": "nan"} | LINF, {"eps": 0} | LINF, {"eps": True} | LINF,
    {"eps": "8/0"} | LINF, {"eps": "small"} | LINF, {"args": {"eps": torch.tensor([0.1, 0.2])} | LINF}, LINF,
    LINF, {}, {"norm": "batch", "eps": 1e-3}, {"norm": True, "eps": 0.1},
    {"norm": 1, "eps": 8}, {"norm": 1.0, "eps": 0.03}, {"norm": "1", "eps": 0.1}, {"norm_type": 1, "eps": 12},
    {"norm": np.bool_(True), "eps": 0.1}, {"norm": "True", "eps": 0.1}, {"norm": None, "eps": 0.1},
    {"epsilon": 8.0, "noise_multiplier": 1.1, "norm": "l2"},  # differential privacy
    {"attack": {"eps": 8 / 255}, "grad_clip": {"max_norm": 1.0, "norm_type": 2}},  # the norm of gradients
    {"a": ATTACK, "b": {"norm": "L2", "eps": 0.5}}, {"a": ATTACK, "b": ATTACK | {"eps": 4}},  # which?
    {"norm": "linf", "a": {"eps": 0.1}, "b": {"eps": 0.2}}, {"norm": "linf", "bn": {"eps": 1e-3}}])
def test_what_names_no_threat(settings):
    assert threat_of(settings) is None


def test_settings_that_hold_themselves_end():
    args = {"eps": 0.1, "norm": "linf"}
    args["args"] = args
    assert threat_of({"args": args}) == ("linf", 0.1)
