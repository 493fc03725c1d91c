"""Hostile and damaged archives end with an error message, and no file is written outside the folder."""

import io
import stat
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from data_tools import archives
from data_tools.archives import open_source, relative_path, unpack

PICTURE = "bottle/train/good/000.png"


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(file, "PNG")
    return file.getvalue()


def tar(path, *members, mode="w"):
    """Write a tar; each member is a name or a TarInfo."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            content = png() if info.isreg() else b""
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def special(kind, name="bottle/odd.png", target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zipped(path, *members, mode=0):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, png())
    return path


@pytest.mark.parametrize(
    "name",
    ["../out.png", "bottle/../../out.png", "/tmp/out.png", "..\\out.png", "C:\\out.png", "C:a.png", "\\\\host\\a.png"],
)
@pytest.mark.parametrize("pack", [tar, zipped])
def test_names_that_leave_the_folder_are_refused(pack, name, tmp_path):
    packed = pack(tmp_path / "packed", PICTURE, name)
    with pytest.raises(ValueError, match="which is not a path in its own folder; this is not the publisher's file"):
        unpack(packed, tmp_path / "a" / "b")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["000.png", "packed"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"Z"])
def test_links_and_devices_are_refused(kind, tmp_path):
    with pytest.raises(ValueError, match="holds 'bottle/odd.png', a link or device; "):
        unpack(tar(tmp_path / "packed", PICTURE, special(kind)), tmp_path / "out")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_refused(mode, tmp_path):
    with pytest.raises(ValueError, match="a link or device; "):
        unpack(zipped(tmp_path / "packed", PICTURE, mode=mode | 0o777), tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize("pack", [tar, zipped])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_repeated_name_is_refused(pack, tmp_path):
    with pytest.raises(ValueError, match="twice"):
        unpack(pack(tmp_path / "packed", PICTURE, "bottle/./train/good/000.png"), tmp_path / "out")


@pytest.mark.parametrize("pack", [tar, zipped])
def test_an_archive_beyond_the_limits_is_refused_before_it_is_written(pack, tmp_path, monkeypatch):
    packed = pack(tmp_path / "packed", *(f"bottle/{number}.png" for number in range(9)))
    monkeypatch.setattr(archives, "MOST_BYTES", 3 * len(png()))
    with pytest.raises(ValueError, match="unpacks to more than"):
        unpack(packed, tmp_path / "out")
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 3
    monkeypatch.undo()
    monkeypatch.setattr(archives, "MOST_FILES", 8)
    with pytest.raises(ValueError, match="or 8 files"):
        unpack(packed, tmp_path / "out")


def test_a_bomb_is_refused_by_the_size_in_its_header(tmp_path, monkeypatch):
    """A gigabyte of zeros in a megabyte, under a wanted or ignored name; and a header of a gigabyte."""
    monkeypatch.setattr(archives, "SLACK", 2**20)
    for name in ("bottle/bomb.png", "bottle/bomb.bin"):
        info = tarfile.TarInfo(name)
        info.size = 2**30
        (tmp_path / "bomb.tar").write_bytes(info.tobuf() + bytes(1024))
        with pytest.raises(ValueError, match="unpacks to more than"):
            unpack(tmp_path / "bomb.tar", tmp_path / "out")
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**30
    (tmp_path / "bomb.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    with pytest.raises(ValueError, match="one of its headers has 1,073,741,824 bytes"):
        unpack(tmp_path / "bomb.tar", tmp_path / "out")


@pytest.mark.parametrize("form", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_truncated_archive_is_refused(form, tmp_path):
    complete = tar(tmp_path / "complete", *(f"bottle/{number}.png" for number in range(30)), mode=form)
    unpack(complete, tmp_path / "out")
    assert len(list((tmp_path / "out" / "bottle").iterdir())) == 30
    (tmp_path / "cut").write_bytes(complete.read_bytes()[: 700 if form == "w" else complete.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"cut can't be unpacked .*: download it again"):
        unpack(tmp_path / "cut", tmp_path / "out2")


@pytest.mark.parametrize("content", [b"", b"text\n" * 900, b"\x1f\x8b" + b"x" * 99, b"PK\x03\x04" + b"x" * 99, png()])
def test_another_file_is_refused(content, tmp_path):
    (tmp_path / "odd").write_bytes(content)
    with pytest.raises(ValueError, match="odd can't be unpacked"):
        unpack(tmp_path / "odd", tmp_path / "out")


def test_a_damaged_zip_is_refused(tmp_path):
    packed = zipped(tmp_path / "packed", PICTURE)
    content = bytearray(packed.read_bytes())
    content[60] ^= 255
    packed.write_bytes(content)
    with pytest.raises(ValueError, match="packed can't be unpacked"):
        unpack(packed, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_only_pictures_tables_and_texts_are_unpacked(tmp_path):
    packed = tar(
        tmp_path / "packed",
        PICTURE,
        "./split_csv/1cls.csv",
        "run.sh",
        ".hidden.png",
        "__MACOSX/a.png",
        special(tarfile.DIRTYPE, "bottle"),
    )
    unpack(packed, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == ["000.png", "1cls.csv"]


def test_unpacked_files_stay_only_where_the_user_stops_the_run(tmp_path):
    packed = tar(tmp_path / "packed.tar", PICTURE)
    with open_source(packed, tmp_path / "data") as root:
        assert (root / PICTURE).is_file() and root.name == "packed"
    assert not list((tmp_path / "data").iterdir())
    with pytest.raises(ValueError, match="mine"), open_source(packed, tmp_path / "data"):
        raise ValueError("mine")
    assert not list((tmp_path / "data").iterdir())
    with pytest.raises(KeyboardInterrupt), open_source(packed, tmp_path / "data"):
        raise KeyboardInterrupt
    assert list((tmp_path / "data").iterdir())


def test_a_relative_path_stays_in_its_folder():
    assert relative_path("a\\b.png", "table").as_posix() == "a/b.png"
    with pytest.raises(ValueError, match="table names ''"):
        relative_path("", "table")
