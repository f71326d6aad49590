"""The members of a zip archive of which every reader sees the same ones; any other archive is refused.

zipfile looks for the directory from the end and shifts its offsets, torch's reader (miniz) trusts the zip64
locator and takes no notice of case, others read from the start: a file can show each of them other members.
Here it must be one sequence, in which every byte has one meaning (APPNOTE 6.3.10, 4.3.7 to 4.3.16):

    for each member, in the directory's order: local header, name, extra fields, data, descriptor if flagged
    the central directory, without comments; zip64 end record and locator, if any; the end record, without
    a comment
"""
import os
import struct
import zipfile
from collections import Counter
from pathlib import Path
from typing import BinaryIO, NamedTuple

_LOCAL = struct.Struct("<4s5H3L2H")  # PK34, version, flags, method, time, date, crc, stored, size, lengths
_CENTRAL = struct.Struct("<4s6H3L5H2L")  # PK12, made by, then as above, comment, disk, attributes, offset
_END = struct.Struct("<4s4H2LH")  # PK56, disk, its start, members here, members, bytes, offset, comment
_END64 = struct.Struct("<4sQ2H2L4Q")  # PK66, its size - 12, two versions, then as above
_LOCATOR = struct.Struct("<4sLQL")  # PK67, disk, offset of PK66, disks
_DESCRIPTORS = {16: struct.Struct("<4s3L"), 24: struct.Struct("<4sL2Q")}  # PK78, crc, stored, size
_ZIP64, _FULL = 1, 2**32 - 1  # the extra field of what 32 bits do not hold, and what stands there then
_DESCRIBED = 8  # flag: crc and sizes follow the data
_FLAGS = _DESCRIBED | 0x800 | 6  # and: names in UTF-8, how hard was compressed
_FOLDER = 16  # in the attributes: miniz goes by it, others by the last letter of the name
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # miniz reads no other
_VERSION = 45  # needed to unpack it: that of zip64
_LONGEST = 500  # bytes of a name: miniz cuts it at 511
_DIRECTORY_BYTES = 2**26  # of the central directory: a state dict has about 70 a tensor


class Ambiguous(zipfile.BadZipFile):
    """Not one archive to every reader: (what, got, expected) without the file's name."""


class Member(NamedTuple):
    """A file in an archive. stored, size: bytes in the archive and unpacked; offset: of its local header."""

    name: str
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    offset: int


class _Entry(NamedTuple):
    """The fields of _CENTRAL; name, extra, comment are lengths."""

    magic: bytes
    made: int
    version: int
    flags: int
    method: int
    time: int
    date: int
    crc: int
    stored: int
    size: int
    name: int
    extra: int
    comment: int
    disk: int
    inside: int
    kind: int
    offset: int


def members(path: Path) -> list[Member]:
    """Those of an archive, in order. Raises: Ambiguous where two readers could see different ones."""
    with open(path, "rb") as file:
        directory, start, count = _directory(file)
        found = _entries(directory, count)
        starts = [*(member.offset for member in found), start]
        _expect(starts[0], 0, "bytes before its first member")
        for member, end in zip(found, starts[1:], strict=True):
            _check_local(file, member, end)
    name, times = Counter(member.name.lower() for member in found).most_common(1)[0] if found else ("", 1)
    if times > 1:
        raise Ambiguous(f"{times} of its zip entries have the same name, but for case: {name[:60]}")
    return found


def _expect(got: object, wanted: object, what: str) -> None:
    if got != wanted:
        raise Ambiguous(f"{what}: {got}, expected {wanted}")


def _taken(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    content = file.read(size) if offset >= 0 else b""
    if len(content) < size:
        raise Ambiguous("the zip directory at its end is missing or damaged")
    return content


def _directory(file: BinaryIO) -> tuple[bytes, int, int]:
    """(the central directory, its offset, how many members): by the end record, with which the file ends."""
    end = os.fstat(file.fileno()).st_size - _END.size
    if end < 0:
        raise Ambiguous("the zip directory at its end is missing or damaged")
    magic, *disks, here, count, size, start, comment = _END.unpack(_taken(file, end, _END.size))
    if magic != b"PK\5\6" or comment:
        raise Ambiguous("the zip directory at its end is missing or damaged")
    fields = (*disks, here, count, size, start)
    before = end
    if end >= _LOCATOR.size and _taken(file, end - _LOCATOR.size, 4) == b"PK\6\7":
        before, large = _zip64(file, end)
        for got, wanted, full in zip(fields, large, (2**16 - 1,) * 4 + (_FULL,) * 2, strict=True):
            if got != full:
                _expect(got, wanted, "a number of its end record, and that of zip64")
        fields = large
    *disks, here, count, size, start = fields
    _expect((*disks, here), (0, 0, count), "disks and members of its end record")
    _expect(start + size, before, "the end of its zip directory")
    if size > _DIRECTORY_BYTES:
        raise Ambiguous(f"its zip directory has {size} bytes, expected at most {_DIRECTORY_BYTES}")
    return _taken(file, start, size), start, count


def _zip64(file: BinaryIO, end: int) -> tuple[int, tuple[int, ...]]:
    """(offset of the zip64 end record, its six numbers): right before its locator, and found by it."""
    at = end - _LOCATOR.size - _END64.size
    _, disk, offset, disks = _LOCATOR.unpack(_taken(file, end - _LOCATOR.size, _LOCATOR.size))
    _expect((disk, offset, disks), (0, at, 1), "the zip64 locator")
    magic, size, _, _, *numbers = _END64.unpack(_taken(file, at, _END64.size))
    _expect((magic, size), (b"PK\6\6", _END64.size - 12), "the zip64 end record")
    return at, tuple(numbers)


def _entries(directory: bytes, count: int) -> list[Member]:
    """The members of the central directory, which must fill it."""
    found, at = list[Member](), 0
    while at < len(directory):
        if len(found) == count or at + _CENTRAL.size > len(directory):
            raise Ambiguous("the zip directory at its end is missing or damaged")
        entry = _Entry._make(_CENTRAL.unpack_from(directory, at))
        _expect((entry.magic, entry.comment, entry.disk), (b"PK\1\2", 0, 0), "an entry of its zip directory")
        at += _CENTRAL.size
        text = directory[at:at + entry.name + entry.extra]
        _expect(len(text), entry.name + entry.extra, "bytes of an entry's name and extra fields")
        found.append(_member(entry, _name(text[:entry.name]), text[entry.name:]))
        at += len(text)
    _expect(len(found), count, "entries of its zip directory")
    return found


def _member(entry: _Entry, name: str, extra: bytes) -> Member:
    if entry.flags & ~_FLAGS or entry.method not in _METHODS or entry.version > _VERSION:
        raise Ambiguous(f"a zip entry has version {entry.version}, flags {entry.flags:#x} and method "
                        f"{entry.method}, expected one that is stored or deflated")
    size, stored, offset = _widened((entry.size, entry.stored, entry.offset), extra)
    if (entry.kind & _FOLDER or name.endswith("/")) and (size or not name.endswith("/")):
        raise Ambiguous(f"a zip entry is a folder to some, with {size} bytes: {name[:60]}")
    if entry.method == zipfile.ZIP_STORED:
        _expect(stored, size, f"stored bytes of {name[:60]}")
    return Member(name, entry.flags, entry.method, entry.crc, stored, size, offset)


def _name(text: bytes) -> str:
    """Printable ASCII: anything else is decoded by each reader in its own way."""
    name = text.decode("latin-1")
    if not name or len(name) > _LONGEST or not name.isascii() or not name.isprintable() or "\\" in name:
        raise Ambiguous(f"a zip entry has the name {name[:60]!r}, expected printable ASCII")
    return name


def _fields(extra: bytes) -> list[bytes]:
    """What the zip64 fields among the extra fields hold."""
    found, at = [], 0
    while at < len(extra):
        if at + 4 > len(extra):
            raise Ambiguous(f"{len(extra) - at} bytes after the extra fields of a zip entry, expected none")
        kind, size = struct.unpack_from("<2H", extra, at)
        content = extra[at + 4:at + 4 + size]
        _expect(len(content), size, "bytes of an extra field of a zip entry")
        found += [content] * (kind == _ZIP64)
        at += 4 + size
    return found


def _widened(numbers: tuple[int, int, int], extra: bytes) -> tuple[int, ...]:
    """Size, stored size and offset, those that 32 bits do not hold from the zip64 field, which has just
    these."""
    fields, full = _fields(extra), sum(number == _FULL for number in numbers)
    _expect([len(field) for field in fields], [8 * full] if full else [], "bytes of zip64 in a zip entry")
    wide = iter(struct.unpack(f"<{full}Q", fields[0]) if full else ())
    return tuple(next(wide) if number == _FULL else number for number in numbers)


def _check_local(file: BinaryIO, member: Member, end: int) -> None:
    """The local header says what the directory says, and member and descriptor fill the file up to `end`."""
    magic, _, flags, method, _, _, crc, stored, size, name, extra = _LOCAL.unpack(
        _taken(file, member.offset, _LOCAL.size))
    text = _taken(file, member.offset + _LOCAL.size, name + extra)
    said = (magic, flags, method, text[:name])
    _expect(said, (b"PK\3\4", member.flags, member.method, member.name.encode()), "a local header")
    _check_sizes(member, (crc, stored, size), _fields(text[name:]))
    numbers, described = (member.crc, member.stored, member.size), bool(flags & _DESCRIBED)
    after = member.offset + _LOCAL.size + name + extra + member.stored
    layout = _DESCRIPTORS.get(end - after) if described else None
    if layout is None:
        _expect(end - after, 16 if described else 0, f"bytes between {member.name[:60]} and what follows it")
    else:
        _expect(layout.unpack(_taken(file, after, layout.size)), (b"PK\7\x08", *numbers),
                f"the descriptor of {member.name[:60]}")


def _check_sizes(member: Member, said: tuple[int, int, int], zip64: list[bytes]) -> None:
    """Crc and sizes of a local header: those of the directory, none where they follow the data, or in its
    zip64 field."""
    described, numbers = member.flags & _DESCRIBED, (member.crc, member.stored, member.size)
    wide = [number for field in zip64 for (number,) in struct.iter_unpack("<Q", field[:len(field) & ~7])]
    allowed = [(0, 0, 0) if described else numbers,
               *([(0 if described else member.crc, _FULL, _FULL)] if wide else [])]
    if said not in allowed or not set(wide) <= {0, member.stored, member.size, member.offset}:
        raise Ambiguous(f"crc and sizes in the local header of {member.name[:60]}: {(*said, *wide)}, "
                        f"expected {numbers}")
