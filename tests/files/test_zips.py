"""Archives of which two readers could see different members: refused; of others zipfile and torch agree."""
import io
import os
import random
import zipfile
from contextlib import suppress

import pytest
import torch
from helpers.zip_layouts import MUTATIONS, Entry, Layout, mutants, other, zip64
from torch.utils.serialization import config

from pwoa_cli.files.zips import Ambiguous, members

COUNT = int(os.environ.get("PWOA_FUZZ", 3000))


def of(content, path):
    path.write_bytes(content)
    return members(path)


def agree(path):
    """Whether torch's reader sees the members that zipfile sees, with their bytes, or none at all."""
    with zipfile.ZipFile(path) as archive:
        root = (archive.namelist() or [""])[0].partition("/")[0] + "/"
        sizes = {info.filename.removeprefix(root): info.file_size for info in archive.infolist()
                 if info.filename.startswith(root)}
        with suppress(RuntimeError):  # torch may refuse what is read here
            reader = torch._C.PyTorchFileReader(str(path))
            return set(reader.get_all_records()) <= set(sizes) and all(
                _same(archive, root, reader, name, size) for name, size in sizes.items())
    return True


def _same(archive, root, reader, name, size):
    with suppress(RuntimeError):
        record = reader.get_record(name)
        with suppress(zipfile.BadZipFile):  # a wrong sum, which torch may not compare
            return record == archive.read(root + name)
        return len(record) == size
    return True


def test_what_is_no_lie_is_read(tmp_path):
    for layout in (Layout(), Layout(zip64=False)):
        found = of(layout.written(), tmp_path / "m.pt")
        assert [member.name for member in found] == [entry.name.decode() for entry in layout.entries]
        assert [member.size for member in found] == [len(entry.data) for entry in layout.entries]
        assert agree(tmp_path / "m.pt")


@pytest.mark.parametrize("kind", MUTATIONS)
def test_each_mutation_of_structure_is_refused_or_harmless(tmp_path, kind):
    """One kind at a time: what can be told apart is refused; some numbers that nobody reads are not."""
    harmless = {"no zip64", "sizes ahead", "name outside"}
    path, refusals = tmp_path / "m.pt", 0
    for seed in range(40):
        layout = Layout()
        MUTATIONS[kind](layout, random.Random(seed))
        try:
            of(layout.written(), path)
        except Ambiguous as error:
            refusals += 1
            assert "\n" not in str(error) and len(str(error)) < 400
        else:
            assert agree(path), kind
    assert bool(refusals) is (kind not in harmless)


def test_mutants_of_structure_are_refused_or_the_same_to_both_readers(tmp_path):
    path, accepted = tmp_path / "m.pt", 0
    for names, content in mutants(COUNT, seed=0):
        try:
            of(content, path)
        except Ambiguous:
            continue
        accepted += 1
        assert agree(path), names
    assert accepted > COUNT / 100, "some change nothing that is read"


def test_two_archives_in_one_file_are_refused(tmp_path):
    """Each way to put one archive where another reader looks."""
    one, two = Layout().written(), other().written()
    second = Layout(zip64=False, comment=other().written()).written()
    moved = Layout(locator={"at": len(two) - 98}, before=two).written()
    for content in (one + two, two + one, second, moved):
        with pytest.raises(Ambiguous):
            of(content, tmp_path / "m.pt")


class _Pipe(io.RawIOBase):
    """Where nothing can be written again: sizes follow the data."""

    def __init__(self):
        self.content = b""

    def writable(self):
        return True

    def write(self, part):
        self.content += part
        return len(part)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("kind", [io.BytesIO, _Pipe])
def test_what_zipfile_writes_is_read(tmp_path, kind, method, large):
    target = kind()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, part in (("a/data.pkl", b"abc" * 99), ("a/data/0", b"")):
            with archive.open(name, "w", force_zip64=large) as file:
                file.write(part)
    content = target.content if kind is _Pipe else target.getvalue()
    assert [member.size for member in of(content, tmp_path / "m.pt")] == [297, 0] and agree(tmp_path / "m.pt")


@pytest.mark.parametrize("alignment", [1, 64, 4096, 2**16])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_what_torch_saves_is_read(tmp_path, alignment, count):
    for name in ("m.pt", "naïve m.pt"):
        with config.patch({"save.storage_alignment": alignment}):
            torch.save({f"w{i}": torch.rand(i % 7) for i in range(count)}, tmp_path / name)
        assert len(members(tmp_path / name)) == count + 6
        assert agree(tmp_path / name)
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2)}, buffer)
    assert len(of(buffer.getvalue(), tmp_path / "n.pt")) == 7


def test_zip64_fields_of_what_32_bits_hold_not(tmp_path):
    """As a file of more than 4 GiB has them: in the place of the numbers that are full, and only of these."""
    full, data = 2**32 - 1, b"0123"
    fine = Layout(entries=[Entry(b"a/x", data, central={"size": full, "stored": full}, extra=zip64(4, 4),
                                 local_extra=zip64(4, 4))])
    assert of(fine.written(), tmp_path / "m.pt")[0].size == 4 and agree(tmp_path / "m.pt")
    for extra in (b"", zip64(4), zip64(4, 4, 0), zip64(4, 5), zip64(4, 4) * 2):
        fine.entries[0].extra = extra
        with pytest.raises(Ambiguous):
            of(fine.written(), tmp_path / "m.pt")
    # full at the end as well
    end = Layout(end={"here": 2**16 - 1, "count": 2**16 - 1, "size": full, "start": full})
    assert len(of(end.written(), tmp_path / "m.pt")) == 4 and agree(tmp_path / "m.pt")
