"""Torch files with changed bytes, and what a user is told of them before memory is taken."""
import io
import resource
import zipfile
from pathlib import Path

import pytest
import torch

from pwoa_cli.checkpoints.state_dict import read_state_dict
from pwoa_cli.errors import InputError

STATE = {"a.weight": torch.arange(16.0).reshape(4, 4), "b.weight": torch.ones(2, 4)}
HUGE = b"\x8a\x05\x00\x00\x00\x00\x10"  # 2**36


def save(content, new=True):
    torch.save(content, "m.pt", _use_new_zipfile_serialization=new)
    return Path("m.pt").read_bytes()


def refused(content=None, path="m.pt", **options):
    """The message; while it is found, no more than 1 GiB of address space is taken."""
    if content is not None:
        Path(path).write_bytes(content)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, hard))
    try:
        with pytest.raises(InputError) as caught:
            read_state_dict(path, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert caught.value.hint and path in caught.value.message and "\n" not in caught.value.message
    assert "alloc" not in caught.value.message, "found before memory was taken"
    return caught.value.message


def rezipped(content, edit, *, compression=zipfile.ZIP_STORED):
    """A torch file with its records changed: edit(name, bytes) -> bytes, or None to leave it out."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w", compression) as new:
        for name in old.namelist():
            changed = edit(name, old.read(name))
            if changed is not None:
                new.writestr(name, changed)
    return result.getvalue()


def in_pickle(content, old, new):
    """The torch file of either format with its pickle changed."""
    if not content.startswith(b"PK"):
        assert old in content
        return content.replace(old, new)
    return rezipped(content, lambda name, part: part.replace(old, new) if name.endswith("data.pkl") else part)
