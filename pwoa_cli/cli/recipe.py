"""`pwoa recipe list|show|check`: the recipes that there are, one of them, and whether a file is one."""
from dataclasses import asdict
from typing import Annotated

import typer

from pwoa_cli.cli import options
from pwoa_cli.cli.console import Console
from pwoa_cli.errors import InputError

ACTIONS = ("list", "show", "check")
EXAMPLES = """\b
Examples:
  pwoa recipe list
  pwoa recipe show default
  pwoa recipe check default --json"""


def recipe(
    *, action: Annotated[str, typer.Argument(metavar="ACTION", help="list, show or check.")],
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", show_default=False, help=(
        "A recipe of the package, or a TOML file; for show and check."))] = "",
    json: options.Json = False,
) -> None:
    """List, show or check recipes."""
    if action not in ACTIONS:
        raise InputError(f"pwoa recipe {action}: expected {', '.join(ACTIONS)}.", hint="pwoa recipe list")
    if (action == "list") == bool(name):
        raise InputError(f"pwoa recipe {action} takes {'no' if name else 'a'} name.",
                         hint="pwoa recipe list" if name else f"pwoa recipe {action} default")
    from pwoa_cli.training import recipe as recipes

    console = Console(json=json)
    if action == "list":
        found = {shipped: recipes.first_line(shipped) for shipped in recipes.shipped()}
        console.result("\n".join(f"{name}: {line}" for name, line in found.items()), {"recipes": found})
        return
    read = recipes.read_recipe(name)
    fine = f"{name} is a recipe; prune --recipe {name} takes it."
    text = recipes.text_of(name) if action == "show" else fine
    console.result(text, {"recipe": asdict(read)})
