"""What became of a recipe (`recipe.trained` of report.json), for people."""
from collections.abc import Mapping
from typing import Any


def facts(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, sentence) of how strongly HSIC pulled, where it did."""
    share = recipe.get("trained", {}).get("hsic_share")
    if share is None:
        return []
    return [("HSIC", f"{100 * share:.2g}% of the loss's gradient while training (median)")]
