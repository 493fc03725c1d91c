"""A file appears complete or not at all, whatever other runs do."""

from pathlib import Path

import pytest

from reports.writer import Writer
from storage import folder_lock
from storage.atomic_file import atomic_write, remove_stale


def test_temporary_files_of_killed_runs_are_removed_and_of_running_ones_kept(tmp_path):
    for name in (
        ".2.part",
        ".training.state.0a1b2c3d.part",
        "figures/crack/.001.png.part",
        "mine/.own.part",
        "own.part",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with atomic_write(tmp_path / "new", "") as file:
        file.write(b"complete")
        with Writer(tmp_path).locked():
            remaining = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.part")}
            assert remaining == {Path(file.name).name, "mine/.own.part", "own.part"}
    assert (tmp_path / "new").read_bytes() == b"complete" and sorted(path.name for path in tmp_path.glob(".*")) == []


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    with atomic_write(tmp_path / "file", "") as first:
        first.write(b"first")
        with atomic_write(tmp_path / "file", "") as second:
            second.write(b"the second one")
        assert (tmp_path / "file").read_bytes() == b"the second one"
    assert (tmp_path / "file").read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 1


def test_the_longest_possible_name_is_written(tmp_path):
    with atomic_write(tmp_path / ("n" * 255), "", "w") as file:
        file.write("x")
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 255]
    with (
        pytest.raises(OSError, match="File name too long; shorten the name or go elsewhere"),
        atomic_write(tmp_path / ("n" * 256), "go elsewhere"),
    ):
        pass


def test_removing_a_temporary_file_before_it_is_locked_does_no_harm(tmp_path, monkeypatch):
    """A starting run may take a temporary file that is not locked yet for one of a killed run."""
    try_lock, removed = folder_lock.try_lock, []

    def late(file):
        if len(removed) < 2:
            path = Path(file.name)
            removed.append(path)
            monkeypatch.setattr(folder_lock, "try_lock", try_lock)
            remove_stale(tmp_path)
            monkeypatch.setattr(folder_lock, "try_lock", late)
            assert not path.exists()
            if len(removed) == 2:
                return False
        return try_lock(file)

    monkeypatch.setattr(folder_lock, "try_lock", late)
    with atomic_write(tmp_path / "file", "") as file:
        file.write(b"complete")
    assert (tmp_path / "file").read_bytes() == b"complete" and len(removed) == 2
