"""Hints on recipes: what they give as an example is put into a recipe file, and typed after --set."""

from pathlib import Path

from helpers.situations import DRY, prints, without
from pwoa_cli.training import recipe as recipes

AT = "training/recipe.py:"
ONE_FIELD = (
    "epochs = 'many'",
    "epochs = 0",
    "lr = -1",
    "regrow = 1",
    "mix_ratio = 2",
    "batch_size = 1",
    "noise = 'much'",
    "noise = 'blocks+blocks'",
    "optimizer = 'best'",
    "cutmix = 1.5",
)
TOGETHER = (
    "cutmix = 0.6, mixup = 0.6",
    "noise = 'gaussian'",
    "alpha = 0, logit_weight = 0, neighbour_weight = 0, hidden_weight = 0, explain_weight = 0, "
    "lambda_x = 0, clean_weight = 0",
)


def with_recipe(lines):
    """The words of a run with a recipe file of these settings."""
    Path("mine.toml").write_text("\n".join(lines.split(", ")))
    return [*without(DRY, "--epochs", "--batch-size"), "--recipe", "mine.toml"]


def check_examples(tool, lines):
    """What is refused in a recipe file is right with each of the hint's examples; after --set with the
    last."""
    hint = tool.refused(*with_recipe(lines))
    examples = hint.removeprefix("For example: ").partition(" (--")[0].split("; or ")
    assert hint.startswith("For example: ")
    for example in examples:
        changed = {line.partition(" = ")[0]: line for line in (*lines.split(", "), *example.split(", "))}
        tool.works(*with_recipe(", ".join(changed.values())))
    tool.works(*DRY, *(word for line in changed.values() for word in ("--set", line)))


@prints(
    AT + "_convert",
    AT + "_check_fields: For example: {} = {}",
    AT + "_check_fields: For example: {} = {}{}",
    AT + "_check_fields: For example: batch_size",
    AT + "_check_fields: For example: noise",
)
def a_field_by_itself(tool):
    for line in ONE_FIELD:
        check_examples(tool, line)
    for option, example in (("--epochs", "4"), ("--mix-ratio", "0")):
        hint = tool.refused(*DRY, option, "-1")
        assert hint.startswith("For example: ") and example in hint
        tool.works(*DRY, option, example)


@prints(
    AT + "check: For example: cutmix",
    AT + "check: For example: gaussian_scale",
    AT + "check: For example: alpha",
)
def fields_together(tool):
    for lines in TOGETHER:
        check_examples(tool, lines)


NEEDS = (
    "noise = 'none', noise_scale = 0, noise_clean = 0, clean_weight = 0.5",
    "noise = 'none', noise_scale = 0, noise_clean = 0, neighbour_weight = 0.5",
    "alpha = 0, logit_weight = 1, noise = 'blocks', noise_scale = 1, clean_weight = 0.5",
    "noise = 'none', noise_clean = 0.5, clean_weight = 0, neighbour_weight = 0",
    "bn_reestimate = 0, bn_inputs = 'plain'",
    "sparsify = 1, ema = 0.9",
    "lambda_x = 0, lambda_y = 0, hsic_every = 4",
    "method = 'admm', start = 'obs'",
    "method = 'admm', regrow = 0.5",
    "start = 'obs', regrow = 0.5",
)


@prints(AT + "check: For example: {}; or {} = {}")
def what_a_field_needs(tool):
    for lines in NEEDS:
        check_examples(tool, lines)


@prints(AT + "_check_asked_scales: {}.", AT + "_check_asked_scales: For")
def scales_of_noise_that_is_not_there(tool):
    assert "noise_scale" in tool.refused(*DRY, "--set", "noise=blocks", "--set", "gaussian_scale=0.1")
    tool.works(*DRY, "--set", "noise=blocks", "--set", "noise_scale=0.1")
    assert "gaussian_scale" in tool.refused(*DRY, "--set", "noise=gaussian", "--set", "noise_scale=1")
    tool.works(*DRY, "--set", "noise=gaussian", "--set", "gaussian_scale=0.1")
    hint = tool.refused(*DRY, "--set", "noise=none", "--set", "noise_scale=1")
    assert hint == "For example: noise = 'blocks' (noise_scale), 'gaussian' (gaussian_scale)."
    tool.works(*DRY, "--set", "noise = 'blocks'", "--set", "noise_scale=1")


@prints(AT + "_with: Did", AT + "_with: Fields")
def names_of_fields(tool):
    near = tool.refused(*DRY, "--set", "lrr=0.1").removeprefix("Did you mean '").removesuffix("'?")
    tool.works(*DRY, "--set", f"{near}=0.1")
    for name in tool.refused(*DRY, "--set", "xyz=0.1").removeprefix("Fields: ").removesuffix(".").split(", "):
        assert hasattr(recipes.Recipe(), name)


@prints(AT + "_tables: Fields", AT + "_tables: For")
def tables_of_kinds(tool):
    for lines in ("network = 1", "images = 1", "data = 1", "network.deep = {}", "kept.most = {}",
                  "images.round = {}"):
        hint = tool.refused(*with_recipe(lines))
        heading = hint.partition("[")[1] + hint.partition("[")[2]
        tool.works(*with_recipe(f"{heading}, epochs = 0.1"))


@prints(AT + "text_of", AT + "read_recipe")
def recipes_by_name(tool):
    hint = tool.refused(*DRY, "--recipe", "papr")
    for name in hint.partition(": ")[2].partition(";")[0].split(", "):
        tool.works("recipe", "check", name)
    Path("broken.toml").write_text("lr =")
    hint = tool.refused(*DRY, "--recipe", "broken.toml")
    Path("broken.toml").write_text(tool.works(*hint.partition(": pwoa ")[2].split()))
    tool.works(*DRY, "--recipe", "broken.toml")
