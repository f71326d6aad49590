"""Reports as one HTML page that needs nothing else: no network, no script; light, dark and on paper.

Jinja2 escapes every text (report.html.jinja), matplotlib draws; both come with `pip install
'pwoa-cli[report]'`.
"""
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pwoa_cli.errors import InputError
from pwoa_cli.reports import escapes, tables
from pwoa_cli.reports.dossier import Dossier

NEEDS = ("jinja2", "matplotlib")
TEMPLATE = "report.html.jinja"


def check_installed() -> None:
    """Raises: InputError, with the line that installs them, where a package is missing."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--html needs packages that are not installed: {', '.join(missing)}.",
                         hint="pip install 'pwoa-cli[report]'")


def of_one(dossier: Dossier) -> str:
    """The page of a run, or of an evaluation of one model, beside another or of several."""
    from pwoa_cli.reports import sections

    if "reference" in dossier.report:
        return of_several([dossier.report], [])
    return _rendered(title=tables.headline(dossier.report), one=sections.one(dossier), several=[], why=[])


def of_several(compared: Sequence[Mapping[str, Any]], why: Sequence[str]) -> str:
    """The page of a comparison. Args: compared: its tables, in the shape of `schema.build_several`; why:
    sentences on why they are not one."""
    from pwoa_cli.reports import sections

    shown = [sections.several(report, name=f"table{number}") for number, report in enumerate(compared)]
    title = shown[0]["headline"] if len(shown) == 1 else f"{len(shown)} tables of models under attack"
    return _rendered(title=title, one=None, several=shown, why=list(why))


def _rendered(**shown: Any) -> str:
    import jinja2

    world = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                               lstrip_blocks=True, loader=jinja2.FileSystemLoader(Path(__file__).parent),
                               finalize=_visible)
    return world.get_template(TEMPLATE).render(shown)


def _visible(value: Any) -> Any:
    """Control characters and broken Unicode as escapes; what is markup already stays as it is."""
    return escapes.visible(value) if type(value) is str else value
