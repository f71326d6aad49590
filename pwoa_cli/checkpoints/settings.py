"""The settings of training that a checkpoint holds beside its weights."""
import argparse
from collections.abc import Iterator, Mapping
from typing import Any

DEPTH = 3  # of settings inside settings: a pickle may hold itself


def mappings(content: Mapping[Any, Any], way: tuple[str, ...] = ()) -> Iterator[
        tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """(the names on the way, a mapping) of all that is a mapping or args; the outer ones come last."""
    for key, value in content.items():
        value = vars(value) if isinstance(value, argparse.Namespace) else value
        if isinstance(value, Mapping) and len(way) < DEPTH:
            yield from mappings(value, (*way, str(key)[:40]))
    yield way, content
