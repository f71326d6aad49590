"""What `pwoa info` found, for people: as Markdown and as a terminal table."""
import os
from collections.abc import Mapping
from typing import Any

from pwoa_cli.checkpoints.model import SHOWN, said
from pwoa_cli.reports import numbers, tables, terminal

HEAD = ("layer", "shape", "weights", "zero %")


def headline(info: Mapping[str, Any]) -> str:
    """What it is, in a line."""
    name = os.path.basename(info["source"].rstrip("/")) or info["source"]
    if info["arch"] is None:
        several = ", ".join(info["unknown"]["candidates"])
        return f"{name}: {f'one of {several}' if several else 'an architecture that pwoa does not know'}"
    sizes = info["input_shape"] or (["images of any size"] if info["default_size"]
                                    else ["images of a size that is not known"])
    shape = " x ".join(map(str, sizes))
    return f"{name}: {info['arch']}, {info['num_classes']} classes, {shape}"


def facts(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was found, as (label, sentence)."""
    weights = info["weights"]
    lines = [*_identity(info), *(("reading", text) for text in info["unwrapped"])]
    zeros = numbers.percent_of_weights(weights["sparsity"])
    lines.append(("weights",
                  f"{weights['total']:,} in {len(info['layers'])} layers ({info['parameters']:,} parameters "
                  "in all)"
                  + (f", and {weights['dead']:,} dead" if weights["dead"] else "")))
    lines.append(("sparsity", f"{zeros}%: {weights['nonzero']:,} of {weights['total']:,} nonzero"))
    file = numbers.size(info["file_bytes"]) + ", " if info["file_bytes"] is not None else ""
    lines.append(("file", f"{file}SHA-256 {info['sha256']}"))
    if info.get("pruned"):
        lines += _history(info["pruned"])
    return [*lines, *(("note", note) for note in info["notes"])]


def _identity(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    if info["arch"] is None:
        return [("architecture", f"not known. {info['unknown']['why']}"),
                ("next", info["unknown"]["what_to_do"].partition("\n\n")[0])]
    threat, clean = info["threat"], info["clean"]
    lines = [("architecture",
              f"{info['arch']}{info['chosen'] and ' with ' + info['chosen']} from {info['evidence']}")]
    others = [said(other) for other in info["same_keys"]]
    for other in others[:SHOWN]:
        lines.append(("or", f"{other}: the same keys (--arch {info['arch']}:{other.replace(' ', '')})"))
    if len(others) > SHOWN:
        lines.append(("or", f"{len(others) - SHOWN} more readings of the same keys (--json lists them; "
                            "--data tries them)"))
    lines.append(("normalisation", info["normalisation"]["words"]))
    if clean:
        doubt = ": near chance, so the data or the reading is wrong" if clean["near_chance"] else ""
        lines.append(("right on",
                      f"{100 * clean['accuracy']:.1f}% of {clean['images']} training images of "
                      f"{clean['data']}{doubt}"))
    if info["settled"]:
        lines.append(("reading", info["settled"]))
    words = (f"{threat['norm']}, eps {numbers.radius(threat['eps'])}" if threat
             else "not in the file (--norm, --eps say it)")
    return [*lines, ("threat", words)]


def _history(pruned: Mapping[str, Any]) -> list[tuple[str, str]]:
    made, lines = pruned.get("report"), []
    source = pruned.get("source") or (made and os.path.basename(made["model"]["source"])) or "a checkpoint"
    lines.append(("pruned from", f"{source}, SHA-256 {pruned.get('source_sha256', 'not known')}"))
    recipe, seed, data, version = (pruned.get(key, "not known")
                                   for key in ("recipe", "seed", "data", "pwoa_version"))
    lines.append(("recipe", f"{recipe}, seed {seed}, data {data}, pwoa {version}"))
    return lines + ([("report", f"{tables.summary(made)} {tables.caption(made)}")] if made else [])


def code(info: Mapping[str, Any]) -> str:
    """The file to write, where that is what to do: its lines, indented; else ""."""
    return info["unknown"]["what_to_do"].partition("\n\n")[2] if info["arch"] is None else ""


def rows(info: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Cells of HEAD, a layer a row."""
    return [(row["name"], "x".join(map(str, row["shape"])), f"{row['total']:,}",
             "dead" if row["live"] is False
             else numbers.percent_of_weights(1 - row["nonzero"] / max(1, row["total"])))
            for row in info["layers"]]


def markdown(info: Mapping[str, Any]) -> str:
    """The findings as one Markdown document."""
    lines = [f"# {tables.inline(headline(info))}", "",
             *(f"- {tables.inline(label)}: {tables.inline(text)}" for label, text in facts(info))]
    lines += ["", code(info)] * bool(code(info))
    return "\n".join([*lines, "", *tables.markdown_table(HEAD, rows(info))]) + "\n"


def table(info: Mapping[str, Any]) -> Any:
    """The findings for a terminal: a rich renderable that holds at 60 columns."""
    from rich.console import Group
    from rich.text import Text

    findings, weights = terminal.grid(show_header=False), terminal.grid()
    findings.add_column(no_wrap=True)
    findings.add_column(overflow="fold")
    for label, text in facts(info):
        findings.add_row(terminal.text_cell(label), terminal.text_cell(text))
    weights.add_column(HEAD[0], overflow="fold")
    for heading in HEAD[1:]:
        weights.add_column(heading, justify="right", no_wrap=True)
    for row in rows(info):
        weights.add_row(*map(terminal.text_cell, row))
    file = [Text(code(info) + "\n")] * bool(code(info))
    return Group(terminal.text_cell(headline(info), "bold"), "", findings, "", *file, weights)
