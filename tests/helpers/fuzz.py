"""Files damaged at random, by bytes, words and inside their envelopes, and what a reader makes of them.

A mutator takes (bytes, random.Random) and returns bytes; a seed names a file.
"""
import gzip
import io
import json
import random
import re
import struct
import traceback
import zipfile
import zlib
from collections import Counter

from pwoa_cli.errors import InputError

BYTES = (0, 1, 0x7f, 0x80, 0xff)
# in the place of a number, a text or a bracket of JSON, TOML or a table
WORDS = (b"0", b"-1", b"1e308", b"1e999", b"NaN", b"null", b"true", b"[]", b"{}", b"[0]", b'"x"', b'""',
         b"0.5", b"9" * 25, b"9" * 5000, b"[" * 3000, b'{"a":' * 2000, b"a." * 2000, b"[1, [2]]",
         b'{"x": "y"}', b"\xff", b"\0", b'"\\ud800"', b"2026-01-01", b"0x10")
TOKEN = re.compile(rb'"[^"\n]*"|[-+\w.]+|[\[\]{}(),:=]')


def flipped(content, r):
    """One bit or byte changed."""
    at = r.randrange(len(content))
    new = content[at] ^ 1 << r.randrange(8) if r.random() < 0.6 else r.choice(BYTES)
    return content[:at] + bytes([new]) + content[at + 1:]


def cut(content, r):
    """The end missing."""
    return content[:r.randrange(len(content))]


def moved(content, r):
    """A stretch left out, doubled or put elsewhere."""
    start, size = r.randrange(len(content)), r.choice((1, 2, 4, 16, 100))
    part, at = content[start:start + size], r.randrange(len(content))
    return r.choice((content[:start] + content[start + size:], content[:at] + part + content[at:],
                     content[:at] + part + content[at + size:]))


def numbered(content, r):
    """Four or eight bytes made a number of either order."""
    at = r.randrange(len(content))
    number = r.choice((0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63))
    size = 8 if number >= 2**32 else r.choice((4, 8))
    return content[:at] + number.to_bytes(size, r.choice(("little", "big"))) + content[at + size:]


def worded(content, r):
    """A word made another."""
    words = list(TOKEN.finditer(content))
    if not words:
        return flipped(content, r)
    one = r.choice(words)
    new = r.choice(WORDS) if r.random() < 0.8 else r.choice(words)[0]
    return content[:one.start()] + new + content[one.end():]


def of_bytes(content, r):
    """Of a file of bytes: one to three changes."""
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        content = r.choice((flipped, flipped, numbered, moved, cut, worded))(content or b"x", r)
    return content


def of_text(content, r):
    """Of JSON, TOML or a table: words more than bytes, and the whole put into brackets."""
    for _ in range(r.choice((1, 1, 2, 3))):
        content = r.choice((worded, worded, worded, worded, flipped, moved, cut))(content or b"x", r)
    return content


def of_json(content, r):
    """Of one JSON text: some value made another, of any type."""
    if r.random() < 0.4:
        return of_text(content, r)
    whole = json.loads(content)
    node, way = whole, []
    while isinstance(node, dict | list) and node and (not way or r.random() < 0.8):
        key = r.choice(list(node) if isinstance(node, dict) else range(len(node)))
        way.append((node, key))
        node = node[key]
    inside, key = way[-1]
    if r.random() < 0.2:
        del inside[key]
    else:
        inside[key] = r.choice((None, True, 0, -1, 1.5, 2**70, 1e300, "", "x", [], {}, [1], {"a": 1}, [[]],
                                "9" * 30, [None], {"a": None}, "nan"))
    return json.dumps(whole).encode()


def of_zip(content, r, *, inside=of_bytes):
    """Of a zip archive: its bytes, or those of one member, with the right sum."""
    if r.random() < 0.4:
        return of_bytes(content, r)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        chosen = r.choice(old.namelist())
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, inside(part, r) if name == chosen and part else part)
    return made.getvalue()


def of_gzip(content, r):
    """Of a gzip file: its bytes, or what is in it."""
    if r.random() < 0.4:
        return of_bytes(content, r)
    return gzip.compress(of_bytes(gzip.decompress(content), r), 1)


def of_safetensors(content, r):
    """Of a safetensors file: its bytes, or its header and the strings in it, with the right length."""
    if r.random() < 0.4:
        return of_bytes(content, r)
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end]
    said = json.loads(header)
    if "__metadata__" in said and r.random() < 0.7:
        key = r.choice(sorted(said["__metadata__"]))
        text = said["__metadata__"][key].encode()
        changed = (of_json if text[:1] in (b"{", b"[") and len(text) > 2 else of_text)(text or b"x", r)
        said["__metadata__"][key] = changed.decode("utf-8", "replace")
        header = json.dumps(said).encode()
    else:
        header = of_json(header, r)
    return len(header).to_bytes(8, "little") + header + content[end:]


def of_png(content, r):
    """Of a PNG file: its bytes, or those of a chunk, with the right sum; other pictures by bytes."""
    if r.random() < 0.4 or content[:4] != b"\x89PNG":
        return of_bytes(content, r)
    chunks, at = [], 8
    while at < len(content):
        size = int.from_bytes(content[at:at + 4], "big")
        chunks.append((content[at + 4:at + 8], content[at + 8:at + 8 + size]))
        at += 12 + size
    chosen = r.randrange(len(chunks))
    made = content[:8]
    for i, (kind, body) in enumerate(chunks):
        body = of_bytes(body or b"x", r) if i == chosen else body
        made += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return made


class Outcome(Counter):
    """How many files were read, refused in a sentence, or ended in something else; `faults`: those, by the
    seed."""

    def __init__(self):
        super().__init__()
        self.faults = {}


def fuzz(read, path, content, mutate, *, count, seed=0):
    """What `read(path)` makes of `count` damaged files in the place of one: read, refused or a fault."""
    found = Outcome()
    for number in range(seed, seed + count):
        path.write_bytes(mutate(content, random.Random(number)))
        try:
            read(path)
        except InputError as error:
            found["refused"] += 1
            if "\n" in error.message or not error.message.isprintable() or len(error.message) > 1000:
                found.faults[number] = f"no sentence: {error.message[:300]!r}"
        except BaseException as error:  # a panic of a library in Rust is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            at = traceback.extract_tb(error.__traceback__)[-1]
            found.faults[number] = f"{type(error).__name__}: {str(error)[:100]} ({at.filename}:{at.lineno})"
        else:
            found["read"] += 1
    found["faults"] = len(found.faults)
    path.write_bytes(content)
    return found
