"""Zip archives written field by field, so that each may lie about any other: `Layout().written()`."""
import random
import struct
import zlib
from dataclasses import dataclass, field

ROOT = b"archive/"
PARTS = {b"data.pkl": b"\x80\x02}.", b"byteorder": b"little", b"data/0": b"0123456789abcdef",
         b"version": b"3\n"}
CENTRAL = ("made", "version", "flags", "method", "time", "date", "crc", "stored", "size", "disk", "inside",
           "outside", "offset")
LOCAL = CENTRAL[1:9]


@dataclass
class Entry:
    """A member: fields of its headers that lie, what stands before it and after its data."""

    name: bytes
    data: bytes
    described: bool = True
    local: dict = field(default_factory=dict)
    central: dict = field(default_factory=dict)
    local_name: bytes | None = None
    local_extra: bytes = b""
    extra: bytes = b""
    comment: bytes = b""
    gap: bytes = b""
    descriptor: bytes | None = None

    def fields(self):
        """What both headers say without a lie."""
        flags = 8 if self.described else 0
        return {"made": 20, "version": 20, "flags": flags, "method": 0, "time": 0, "date": 0,
                "crc": zlib.crc32(self.data), "stored": len(self.data), "size": len(self.data), "disk": 0,
                "inside": 0, "outside": 0}

    def body(self):
        """Local header, data and descriptor."""
        told = self.fields() | ({"crc": 0, "stored": 0, "size": 0} if self.described else {}) | self.local
        name = self.name if self.local_name is None else self.local_name
        after = struct.pack("<4s3L", b"PK\7\x08", zlib.crc32(self.data), len(self.data), len(self.data))
        after = after if self.described else b""
        return (self.gap + struct.pack("<4s5H3L2H", b"PK\3\4", *(told[k] for k in LOCAL), len(name),
                                       len(self.local_extra)) + name + self.local_extra + self.data
                + (after if self.descriptor is None else self.descriptor))

    def directory(self, offset):
        """The entry in the central directory."""
        told = self.fields() | {"offset": offset} | self.central
        numbers = [told[k] for k in CENTRAL]
        head = struct.pack("<4s6H3L", b"PK\1\2", *numbers[:9])
        lengths = struct.pack("<3H", len(self.name), len(self.extra), len(self.comment))
        return (head + lengths + struct.pack("<2H2L", *numbers[9:]) + self.name + self.extra + self.comment)


@dataclass
class Layout:
    """An archive as torch.save lays it out. end, end64, locator: fields that replace the right ones."""

    entries: list = field(default_factory=lambda: [Entry(ROOT + n, d) for n, d in PARTS.items()])
    order: list | None = None
    zip64: bool = True
    before: bytes = b""
    between: bytes = b""
    after: bytes = b""
    comment: bytes = b""
    end: dict = field(default_factory=dict)
    end64: dict = field(default_factory=dict)
    locator: dict = field(default_factory=dict)

    def written(self):
        """Its bytes."""
        content, offsets = self.before, []
        for entry in self.entries:
            offsets.append(len(content) + len(entry.gap))
            content += entry.body()
        order = range(len(self.entries)) if self.order is None else self.order
        directory = b"".join(self.entries[i].directory(offsets[i]) for i in order)
        told = {"disk": 0, "start_disk": 0, "here": len(order), "count": len(order), "size": len(directory),
                "start": len(content)}
        content += directory + self.between
        if self.zip64:
            at = len(content)
            content += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, *(told | self.end64).values())
            place = {"disk": 0, "at": at, "disks": 1} | self.locator
            content += struct.pack("<4sLQL", b"PK\6\7", *place.values())
        content += struct.pack("<4s4H2LH", b"PK\5\6", *(told | self.end).values(), len(self.comment))
        return content + self.comment + self.after


def zip64(*numbers):
    """An extra field of zip64."""
    return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)


def other():
    """An archive that harms where it is read in the place of another."""
    return Layout(entries=[Entry(ROOT + n, d.upper()) for n, d in PARTS.items()])


# --- mutations of structure: (layout, random) -> None ---------------------------------------------------

def _entry(layout, r):
    return layout.entries[r.randrange(len(layout.entries))]


def _set(part, names, values):
    def edit(layout, r):
        getattr(_entry(layout, r), part)[r.choice(names)] = r.choice(values)
    return edit


def _put(name, values):
    def edit(layout, r):
        setattr(_entry(layout, r), name, r.choice(values))
    return edit


def _whole(name, values):
    def edit(layout, r):
        setattr(layout, name, r.choice(values))
    return edit


def _told(part, names, values):
    def edit(layout, r):
        getattr(layout, part)[r.choice(names)] = r.choice(values)
    return edit


def _again(change):
    def edit(layout, r):
        entry = _entry(layout, r)
        place = r.choice((0, len(layout.entries)))
        layout.entries.insert(place, Entry(change(entry.name), entry.data[::-1], entry.described))
    return edit


def _overlapping(layout, r):
    one, other = r.sample(layout.entries, 2)
    other.central["offset"] = r.choice((0, 40, len(one.body()), one.central.get("offset", 0)))


def _shuffled(layout, r):
    layout.order = r.sample(range(len(layout.entries)), len(layout.entries))


def _left_out(layout, r):
    layout.order = sorted(r.sample(range(len(layout.entries)), len(layout.entries) - 1))


def _undescribed(layout, r):
    for entry in layout.entries:
        entry.described = False


NUMBERS = (0, 1, 7, 16, 20, 22, 64, 255, 2**16 - 1)
LARGE = (*NUMBERS, 100, 300, 2**31, 2**32 - 1)
MUTATIONS = {
    "bytes before": _whole("before", (b"x", b"PK\3\4" + bytes(26), other().written())),
    "bytes after": _whole("after", (b"x", bytes(22), other().written())),
    "bytes between": _whole("between", (b"x", b"PK\5\6" + bytes(18), other().written())),
    "comment": _whole("comment", (b"x", other().written(), struct.pack("<4s4H2LH", b"PK\5\6", *[0] * 7))),
    "no zip64": _whole("zip64", (False,)),
    "numbers at the end": _told("end", ("disk", "start_disk", "here", "count", "size", "start"), NUMBERS),
    "numbers of zip64": _told("end64", ("disk", "start_disk", "here", "count", "size", "start"), LARGE),
    "locator": _told("locator", ("disk", "at", "disks"), LARGE),
    "same name": _again(bytes), "name in capitals": _again(bytes.upper),
    "name of bytes": _again(lambda n: n + b"\xe9"),
    "name with NUL": _again(lambda n: n + b"\0x"), "long name": _again(lambda n: n + b"x" * 600),
    "name with a backslash": _again(lambda n: n.replace(b"/", b"\\")),
    "name outside": _again(lambda n: n.removeprefix(ROOT)), "folder": _again(lambda n: n + b"/"),
    "overlap": _overlapping, "another order": _shuffled, "left out": _left_out, "sizes ahead": _undescribed,
    "gap": _put("gap", (b"x", b"PK\7\x08" + bytes(12), bytes(16))),
    "descriptor": _put("descriptor", (b"", bytes(12), bytes(16), b"PK\7\x08" + bytes(12),
                                      b"PK\7\x08" + bytes(20))),
    "local name": _put("local_name", (b"archive/x", b"", b"ARCHIVE/DATA.PKL")),
    "local numbers": _set("local", LOCAL, (0, 1, 8, 16, 255, 2**16 - 1)),
    "local sizes": _set("local", ("crc", "stored", "size"), LARGE),
    "central numbers": _set("central", (*LOCAL, "disk", "inside"), (0, 1, 8, 16, 255, 2**16 - 1)),
    "central sizes": _set("central", ("crc", "stored", "size", "offset", "outside"), LARGE),
    "extra": _put("extra", (zip64(1), zip64(16, 16), zip64(16, 16, 0), b"x", b"\1\0\x08", b"UT\1\0x",
                            b"PK\6\7" + bytes(16))),
    "local extra": _put("local_extra", (zip64(1), zip64(16, 16), b"x", b"FB\2\0ZZ", b"FB\xff\0ZZ")),
    "entry comment": _put("comment", (b"x", b"PK\6\7" + bytes(16), other().written()[-22:]))}


def mutants(count, *, seed):
    """(names of the mutations, bytes) of archives with one to three of them."""
    r = random.Random(seed)
    for _ in range(count):
        layout = Layout()
        names = r.sample(list(MUTATIONS), r.choice((1, 1, 2, 3)))
        for name in names:
            MUTATIONS[name](layout, r)
        yield names, layout.written()
