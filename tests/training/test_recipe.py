"""Recipes: what wins, what is refused and how."""
import pytest

from pwoa_cli.errors import InputError
from pwoa_cli.losses import distill
from pwoa_cli.training import augmentation
from pwoa_cli.training.kinds import IMAGES, NETWORKS, Kinds
from pwoa_cli.training.recipe import CHOICES, NOISES, Recipe, check, noise_scales, read_recipe, shipped
from pwoa_cli.training.state import plan_steps


def test_recipes_can_name_what_there_is():
    assert NOISES == augmentation.NOISES
    assert CHOICES["hidden_loss"] == distill.HIDDEN_LOSSES
    assert CHOICES["augment"] == ("auto", *augmentation.AUGMENTS)


def test_the_paper_recipe_has_the_published_settings():
    """Jian et al. 2022, sec. V-A, and DESIGN of this project."""
    cifar, mnist, cifar100 = (read_recipe("paper", data=d) for d in ("cifar10", "mnist", "cifar100"))
    sparsify = round(cifar.epochs * cifar.sparsify)
    assert (cifar.method, cifar.allocation, cifar.epochs, sparsify) == ("admm", "uniform", 150, 50)
    assert (cifar.optimizer, cifar.lr, cifar.finetune_lr) == ("sgd", 0.01, 0.005)
    assert (cifar.lambda_x, cifar.lambda_y) == (2e-5, 1e-4)
    assert (mnist.optimizer, mnist.lr, mnist.finetune_lr) == ("adam", 5e-4, 1e-3)
    assert (mnist.lambda_x, mnist.lambda_y) == (2e-4, 5e-5)
    assert (cifar100.alpha, cifar100.lambda_x, cifar100.lambda_y) == (100, 5e-7, 2e-6)
    assert (cifar.temperature, cifar.alpha, cifar.kl_reduction) == (30, 10, "mean")
    assert (cifar.rho, cifar.rho_growth, cifar.rho_max) == (0.01, 1.35, 1)


def test_what_is_nearer_to_the_user_wins(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('lr = 0.1\nsigma = 3\nepochs = 7\n[data.mnist]\nlr = 0.2\nsigma = 4\n')
    recipe = read_recipe(str(file), data="mnist", overrides={"lr": "0.3"})
    found = recipe.name, recipe.lr, recipe.sigma, recipe.epochs, recipe.alpha
    assert found == ("mine", 0.3, 4.0, 7.0, Recipe().alpha)
    assert read_recipe(str(file), data="cifar10").lr == 0.1


def test_epochs_on_the_command_line_are_meant_as_they_are():
    assert read_recipe("default").stretch == 1
    assert read_recipe("default", overrides={"epochs": 2}).stretch == 0
    assert read_recipe("default", overrides={"epochs": 2, "stretch": 1}).stretch == 1


def test_effort_multiplies_the_epochs_unless_they_are_named():
    steps = {e: plan_steps(read_recipe("default", overrides={"effort": e}), 12800, 0.9)[2]
             for e in ("quick", "default", "max")}
    assert steps["default"] == plan_steps(read_recipe("default"), 12800, 0.9)[2]
    assert steps["max"] == 5 * steps["default"] == 25 * steps["quick"]
    named = read_recipe("default", overrides={"effort": "max", "epochs": "3"})
    assert plan_steps(named, 12800, 0.99)[2] == 300


@pytest.mark.parametrize("name", shipped())
@pytest.mark.parametrize("data", ["", "mnist", "cifar100"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("images", IMAGES)
def test_shipped_recipes_are_valid(name, data, network, images):
    assert check(read_recipe(name, data=data, kinds=Kinds(network, images))).name == name


@pytest.mark.parametrize(("overrides", "message", "hint"), [
    ({"lamda_x": "1"}, "no recipe field 'lamda_x'", "Did you mean 'lambda_x'"),
    ({"lr": "fast"}, "lr = 'fast', expected a float", "lr = "),
    ({"batch_size": "12.5"}, "batch_size = '12.5', expected a int", "128"),
    ({"lr": "0"}, "lr = 0.0, expected a number above 0", "lr"),
    ({"lr": "nan"}, "lr = nan", "lr"),
    ({"epochs": "-1"}, "epochs = -1.0, expected a number above 0", "epochs"),
    ({"method": "magic"}, "method = 'magic', expected one of ramp, admm", "ramp"),
    ({"batch_size": "1"}, "batch_size 1, expected at least 2", "batch_size = 128"),
    ({"ema": "1"}, "ema = 1.0, expected a number below 1", "ema = 0"),
    ({"regrow": "1.5"}, "regrow = 1.5, expected a number below 1", "regrow = 0"),
    ({"mix_ratio": "2"}, "mix_ratio = 2.0, expected a number at most 1", "mix_ratio = 0 (--mix-ratio 0)"),
    ({"ema": "-0.1"}, "ema = -0.1, expected a number of at least 0", "ema"),
    ({"bn_reestimate": "0.5"}, "bn_reestimate = '0.5', expected a int", "bn_reestimate"),
    ({"bn_inputs": "noisy"}, "expected one of varied, clean", "varied"),
    ({"effort": "5"}, "effort = '5', expected one of quick, default, max", "quick"),
    ({"start": "obs", "method": "admm"}, "start = 'obs' belongs to method = 'ramp'",
     "method = 'ramp'; or start = 'dense'"),
    ({"regrow": "0.1", "method": "admm"}, "regrow = 0.1 belongs to method = 'ramp'",
     "method = 'ramp'; or regrow = 0"),
    ({"regrow": "0.1", "start": "obs"}, "the masks move once only", "start = 'dense'"),
    ({"regrow": "0.1", "mask_updates": "1"}, "the masks move once only", "mask_updates = 40"),
    ({"noise": "sgn"}, "noise = 'sgn', expected none, one of sign, blocks", "blocks+gaussian"),
    ({"noise": "sign+none"}, "expected none, one of sign, blocks", "blocks+gaussian"),
    ({"noise": "sign+sign"}, "expected none, one of sign, blocks", "blocks+gaussian"),
    ({"noise": "blocks+gaussian", "gaussian_scale": "0"}, "gaussian_scale must say", "gaussian_scale = 0.1"),
    ({"noise": "gaussian", "gaussian_scale": "0"}, "gaussian_scale must say", "gaussian_scale = 0.1"),
    ({"noise": "blocks", "gaussian_scale": "0.1"},
     "gaussian_scale = 0.1, but noise = 'blocks' has no gaussian", "noise_scale"),
    ({"noise": "gaussian", "noise_scale": "0.1"},
     "noise_scale = 0.1, but noise = 'gaussian' has only gaussian", "gaussian_scale"),
    ({"noise": "none", "noise_scale": "2"}, "noise_scale = 2.0, but noise = 'none'", "noise = 'blocks'"),
    ({"noise_clean": "1.5"}, "noise_clean = 1.5, expected a number at most 1", "noise_clean = 0"),
    ({"mixup": "1.5", "cutmix": "0"}, "mixup = 1.5, expected a number at most 1", "mixup = 0"),
    ({"sparsify": "1.5"}, "sparsify = 1.5, expected a number at most 1", "sparsify"),
    ({"noise": "none", "noise_clean": "0.5"},
     "noise_clean = 0.5 leaves images without noise, but there is none", "noise = 'blocks'"),
    ({"hsic_every": "4", "lambda_x": "0", "lambda_y": "0"},
     "hsic_every = 4 says which steps have HSIC terms, but lambda_x and lambda_y are 0",
     "lambda_x = 1e-3; or hsic_every = 1"),
    ({"hsic_every": "0", "lambda_x": "1"}, "hsic_every = 0, expected a number above 0", "hsic_every = 1"),
    ({"bn_inputs": "clean"}, "bn_inputs = 'clean' names the images of bn_reestimate, which is 0",
     "bn_reestimate = 100"),
    ({"ema": "0.9", "sparsify": "1"},
     "ema = 0.9 averages over the second phase, but sparsify = 1 leaves none", "sparsify = 0.5"),
    ({"clean_weight": "1", "alpha": "0"}, "clean_weight = 1.0 is relative to alpha, which is 0", "alpha = 1"),
    ({"alpha": "0", "hidden_weight": "0", "lambda_x": "0"}, "nothing to learn from the teacher", "alpha = 1"),
    ({"alpha": "0", "hidden_weight": "0", "lambda_x": "0", "lambda_y": "1"},
     "nothing to learn from the teacher", "alpha = 1"),
    ({"cutmix": "0.6", "mixup": "0.5"}, "a batch is mixed in one way", "cutmix = 0.5, mixup = 0.5"),
    ({"noise": "none", "clean_weight": "1"}, "clean_weight = 1.0 compares images with their noisy copies",
     "noise_clean = 0"),
    ({"noise_clean": "1", "neighbour_weight": "1"}, "neighbour_weight = 1.0 compares",
     "neighbour_weight = 0"),
    ({"noise": "blocks", "noise_scale": "0", "neighbour_weight": "1"}, "but there is no noise",
     "neighbour_weight = 0"),
    ({"hidden_loss": "l1"}, "hidden_loss = 'l1', expected one of relative, channels, attention, cka",
     "relative"),
])
def test_wrong_fields_get_a_sentence(overrides, message, hint):
    with pytest.raises(InputError, match="command line") as error:
        read_recipe("default", data="cifar10", overrides=overrides)
    assert message in error.value.message and hint in error.value.hint


def test_fields_that_depend_on_each_other_wait_for_the_data():
    """The default recipe mixes all batches by boxes, but not flat images; without data only single fields are
    judged."""
    fields = {"mixup": "0.5", "lambda_y": "0.1"}
    assert read_recipe("default", overrides=fields).mixup == 0.5
    assert read_recipe("default", data="mnist", kinds=LENET, overrides=fields).cutmix == 0
    with pytest.raises(InputError, match="a batch is mixed in one way"):
        read_recipe("default", data="cifar10", kinds=RESNET, overrides=fields)
    for wrong in ({"mixup": "2"}, {"noise": "sgn"}, {"ema": "1"}, {"epochs": "x"}, {"method": "y"},
                  {"batch_size": "1"}):
        with pytest.raises(InputError):
            read_recipe("default", overrides=wrong)


def test_a_file_whose_fields_contradict_each_other_is_named_alone(tmp_path):
    (tmp_path / "mine.toml").write_text("cutmix = 0.7\nmixup = 0.6\n[data.mnist]\nmixup = 0.1")
    with pytest.raises(InputError, match=r"mine\.toml: cutmix 0.7, mixup 0.6"):
        read_recipe(str(tmp_path / "mine.toml"), data="cifar10")
    assert read_recipe(str(tmp_path / "mine.toml"), data="mnist").mixup == 0.1
    assert read_recipe(str(tmp_path / "mine.toml"), data="cifar10", overrides={"mixup": 0.2}).mixup == 0.2


@pytest.mark.parametrize(("changes", "want"), [
    ({"noise": "none"}, {}),
    ({"noise": "lowpass", "noise_scale": 2.0, "gaussian_scale": 0.7}, {"lowpass": 0.2}),
    ({"noise": "gaussian", "noise_scale": 3.0, "gaussian_scale": 0.15}, {"gaussian": 0.15}),
    ({"noise": "gaussian+sign", "gaussian_scale": 0.3}, {"gaussian": 0.3, "sign": 0.1})])
def test_noise_is_in_units_of_eps_and_gaussian_in_units_of_pixels(changes, want):
    assert noise_scales(Recipe(**changes), eps=0.1) == want


def test_what_the_file_sets_yields_to_the_command_line_where_both_cannot_be(tmp_path):
    """Somebody who asks for another method or start need not know that the recipe regrows."""
    mine = tmp_path / "mine.toml"
    mine.write_text("regrow = 0.2\nalpha = 1\n")
    for asked in ({"method": "admm"}, {"start": "obs"}, {"mask_updates": "1"}):
        assert read_recipe(str(mine), data="cifar10", overrides={"lr": 0.1}).regrow == 0.2
        assert read_recipe(str(mine), data="cifar10", overrides=asked).regrow == 0
    with pytest.raises(InputError, match="regrow = 0.2"):  # but not what the file itself has wrong
        mine.write_text("regrow = 0.2\nmask_updates = 1\nalpha = 1\n")
        read_recipe(str(mine), data="cifar10", overrides={"epochs": 2})


LENET, RESNET = Kinds("plain", "flat"), Kinds("batch-norm", "photographs")
# What docs/results.md was measured with; fields that are not named are those of `Recipe`
MEASURED = {"method": "ramp", "epochs": 10, "stretch": 1, "sparsify": 0.5, "mask_updates": 24,
            "schedule": "warm-cosine", "alpha": 1, "temperature": 4, "kl_reduction": "batchmean",
            "gaussian_scale": 0.15, "noise_scale": 1, "hsic_every": 4}
MEASURED_LENET = {"allocation": "lamp", "batch_size": 32, "precision": "float32", "optimizer": "adam",
                  "lr": 1.5e-3, "noise": "blocks", "cutmix": 0, "hidden_weight": 1,
                  "lambda_x": 2e-4, "lambda_y": 6e-3}
BATCH_NORM = {"allocation": "auto", "batch_size": 128, "precision": "auto", "optimizer": "sgd", "lr": 0.05,
              "cutmix": 1, "lambda_x": 5e-5, "lambda_y": 1.5e-3}
MEASURED_RESNET = BATCH_NORM | {"noise": "gaussian", "hidden_weight": 1}
MEASURED_RESNET18 = BATCH_NORM | {"noise": "blocks+gaussian", "hidden": "inner", "hidden_weight": 2,
                                  "regrow": 0.3, "clip": 10, "lambda_x": 7.5e-5, "lambda_y": 2.25e-3}


@pytest.mark.parametrize(("kinds", "fields"), [(LENET, MEASURED_LENET), (RESNET, MEASURED_RESNET),
                                               (RESNET._replace(kept="many"), MEASURED_RESNET18)])
@pytest.mark.parametrize("data", ["mnist", "cifar10", "anything"])
def test_lenet_and_resnet_keep_every_field_that_was_measured(kinds, fields, data):
    """By what they are: the name of the data set is no reason."""
    assert read_recipe("default", data=data, kinds=kinds) == Recipe(**MEASURED, **fields)


def test_networks_without_batch_norm_take_steps_without_a_scale():
    for kind in ("plain", "layer-norm"):
        recipe = read_recipe("default", data="", kinds=Kinds(kind, "photographs"))
        assert (recipe.optimizer, recipe.allocation) == ("adam", "lamp") and recipe.lr <= 1.5e-3


def test_tables_of_kinds_come_before_those_of_data(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("lr = 1\nsigma = 1\nrho = 1\nclip = 1\nalpha = 1\n[network.plain]\nlr = 2\nsigma = 2\n"
                    "rho = 2\n[kept.many]\nlr = 5\nclip = 5\n"
                    "[images.flat]\nlr = 3\nsigma = 3\n[data.mnist]\nlr = 4\n[network.layer-norm]\n"
                    "clip = 9\n")
    found = read_recipe(str(file), data="mnist", kinds=LENET)
    assert (found.lr, found.sigma, found.rho, found.clip) == (4, 3, 2, 1)
    found = read_recipe(str(file), data="mnist", kinds=RESNET)
    assert (found.lr, found.sigma, found.rho, found.clip) == (4, 1, 1, 1)
    found = read_recipe(str(file), data="cifar10", kinds=LENET._replace(kept="many"))
    assert (found.lr, found.sigma, found.rho, found.clip) == (3, 3, 2, 5)


@pytest.mark.parametrize(("text", "message"), [
    ("[network.batchnorm]\nlr = 1", r"\[network.batchnorm\], expected one of batch-norm, layer-norm, plain"),
    ("[kept.most]\nlr = 1", r"\[kept.most\], expected one of many, few"),
    ("[images.grey]\nlr = 1", r"\[images.grey\], expected one of flat, photographs"),
    ("network = 3", "network is not a table of tables"),
    ("[images.flat]\nlearn = 1", r"\[images.flat\]: no recipe field 'learn'")])
def test_wrong_tables_of_kinds_get_a_sentence_whatever_the_network_is(tmp_path, text, message):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_recipe(str(tmp_path / "mine.toml"))


def test_the_noise_of_the_default_recipe():
    photographs, flat = (read_recipe("default", data="", kinds=kinds) for kinds in (RESNET, LENET))
    assert noise_scales(photographs, eps=8 / 255) == {"gaussian": 0.15}
    assert noise_scales(flat, eps=0.3) == {"blocks": 0.3}
    signs = read_recipe("default", data="cifar10", overrides={"noise": "sign"})
    assert noise_scales(signs, eps=0.1) == {"sign": 0.1}


@pytest.mark.parametrize("overrides", [
    {"noise": "lowpass+sign"}, {"noise": "blocks+gaussian", "gaussian_scale": "0.1"},
    {"noise": "gaussian", "gaussian_scale": "0.1"},
    {"cutmix": "0.3", "mixup": "0.7"}, {"clean_weight": "1", "neighbour_weight": "1", "noise_clean": "0.9"},
    {"augment": "hard"},
])
def test_combinations_that_make_sense_are_taken(overrides):
    recipe = read_recipe("default", data="cifar10", overrides=overrides)
    assert all(str(getattr(recipe, name)).removesuffix(".0") == value for name, value in overrides.items())


def test_wrong_files_get_a_sentence(tmp_path):
    with pytest.raises(InputError, match="neither shipped nor a file") as error:
        read_recipe("papr")
    assert "default, paper" in error.value.hint
    (tmp_path / "x.toml").write_text("lr = = 3")
    with pytest.raises(InputError, match="cannot be read as a TOML file"):
        read_recipe(str(tmp_path / "x.toml"))
    for number, text in enumerate(('data = "mnist"', "[data]\nmnist = 3")):
        (tmp_path / f"d{number}.toml").write_text(text)
        with pytest.raises(InputError, match="data is not a table of tables"):
            read_recipe(str(tmp_path / f"d{number}.toml"))
    (tmp_path / "binary.toml").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(InputError, match="cannot be read as a TOML file"):
        read_recipe(str(tmp_path / "binary.toml"))
    for text, why in (("lr = " + "[" * 2000, "nested too deep"), ("lr = " + "9" * 5000, "a TOML file"),
                      ("a." * 2000 + "b = 1", "TOML|no recipe field"),
                      ("lr = 1e308", r"lr = 1e\+308, expected"),
                      (f"batch_size = {'9' * 4000}", "batch_size = 9{40}?")):
        (tmp_path / "long.toml").write_text(text)
        with pytest.raises(InputError, match=why) as error:
            read_recipe(str(tmp_path / "long.toml"))
        assert len(error.value.message) < 400
    with pytest.raises(InputError, match="batch_size = 'inf', expected a int"):
        read_recipe("default", overrides={"batch_size": "inf"})
    (tmp_path / "y.toml").write_text("lr = true")
    with pytest.raises(InputError, match="lr = True, expected a float"):
        read_recipe(str(tmp_path / "y.toml"))
