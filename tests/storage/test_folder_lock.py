"""Two runs on one folder: the second one is told who has it, and nothing of a killed one stands in the way."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from data_tools.sample_set import ensure_sample_set
from reports.writer import Writer
from storage import folder_lock
from storage.atomic_file import atomic_write, remove_stale
from training import checkpoint

ROOT = Path(__file__).parents[2]
HOLDER = "import pathlib, sys; from storage import folder_lock; folder = pathlib.Path(sys.argv[1])\nwith folder_lock.locked(folder, ''): print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    """A living process that has the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_run_is_told_who_has_the_folder(holder, run_main, tmp_path):
    """One line, exit code 2 and nothing begun; the checkpoint folder's lock and the results folder's."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "nut").symlink_to(tmp_path)
    for arguments in (
        ["--train"],
        ["--domain_adaptation"],
        ["--train", "--detection", "model.checkpoint_dir=own", "--output", str(tmp_path)],
    ):
        code, out, err = run_main(*arguments)
        assert code == 2 and err.count("\n") == 1 and "Training" not in out
        assert f"is being written by -c {tmp_path} (process {holder.pid} on {socket.gethostname()}, since 20" in err
        assert "wait for its end, or c" in err
    holder.communicate("")
    assert not (tmp_path / folder_lock.LOCK).exists()


def test_a_killed_run_lets_go_of_its_lock(holder, tmp_path):
    with pytest.raises(BlockingIOError, match=f"process {holder.pid}"), folder_lock.locked(tmp_path, "go elsewhere"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / folder_lock.LOCK).exists()
    folder_lock.refuse_locked(tmp_path, "")
    with folder_lock.locked(tmp_path, ""):
        assert json.loads((tmp_path / folder_lock.LOCK).read_text())["pid"] == os.getpid()
        folder_lock.refuse_locked(tmp_path, "")  # one's own is none
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("note", ["", "{", "[]", "[" * 100_000, '{"command": "\\u001b[2J\\n"}'])
def test_a_damaged_note_is_no_obstacle(tmp_path, note):
    path = tmp_path / folder_lock.LOCK
    path.write_text(note)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError) as caught:
            folder_lock.refuse_locked(tmp_path, "go elsewhere")
        assert str(caught.value).isprintable() and "go elsewhere" in str(caught.value)
    folder_lock.refuse_locked(tmp_path, "")


def test_only_one_of_many_has_the_lock_at_a_time(tmp_path):
    """The file is removed and made again all the time: nobody may lock one that has lost its name."""
    inside, most, entered, failures = 0, 0, 0, []

    def take_turns() -> None:
        nonlocal inside, most, entered
        own = 0
        while own < 40 and not failures:
            try:
                with folder_lock.locked(tmp_path, ""):
                    inside += 1
                    most, entered = max(most, inside), entered + 1
                    inside -= 1
                    own += 1
            except BlockingIOError:
                time.sleep(0)  # the scheduler may choose another
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=take_turns) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and most == 1 and entered == 4 * 40


def test_a_file_system_without_locks_costs_a_word(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".old.part").touch()
    (tmp_path / ".new.part").touch()
    os.utime(tmp_path / ".old.part", (0, 0))
    with checkpoint.locked(tmp_path, wanted=True):
        checkpoint.save(tmp_path / "1", {})
    folder_lock.refuse_locked(tmp_path, "")
    assert "can't be locked (No locks available); start no second run on it" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".new.part", "1"]


def test_temporaries_of_the_dead_are_swept_and_of_the_living_kept(tmp_path):
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
        file.write(b"whole")
        with Writer(tmp_path).locked():
            left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.part")}
            assert left == {Path(file.name).name, "mine/.own.part", "own.part"}
    assert (tmp_path / "new").read_bytes() == b"whole" and sorted(path.name for path in tmp_path.glob(".*")) == []


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    with atomic_write(tmp_path / "file", "") as first:
        first.write(b"first")
        with atomic_write(tmp_path / "file", "") as second:
            second.write(b"the second one")
        assert (tmp_path / "file").read_bytes() == b"the second one"
    assert (tmp_path / "file").read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 1


def test_a_name_as_long_as_the_file_system_takes_is_written(tmp_path):
    with atomic_write(tmp_path / ("n" * 255), "", "w") as file:
        file.write("x")
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 255]
    with (
        pytest.raises(OSError, match="File name too long; shorten the name or go elsewhere"),
        atomic_write(tmp_path / ("n" * 256), "go elsewhere"),
    ):
        pass


def test_a_sweeper_that_comes_between_does_no_harm(tmp_path, monkeypatch):
    """Before the writer has locked its temporary file, a starting run may take that for a dead one's."""
    try_lock, swept = folder_lock.try_lock, []

    def late(file):
        if len(swept) < 2:
            path = Path(file.name)
            swept.append(path)
            monkeypatch.setattr(folder_lock, "try_lock", try_lock)
            remove_stale(tmp_path)
            monkeypatch.setattr(folder_lock, "try_lock", late)
            assert not path.exists()
            if len(swept) == 2:
                return False
        return try_lock(file)

    monkeypatch.setattr(folder_lock, "try_lock", late)
    with atomic_write(tmp_path / "file", "") as file:
        file.write(b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole" and len(swept) == 2


def test_a_sample_set_that_is_being_made_is_left_alone(holder, tmp_path):
    with pytest.raises(BlockingIOError, match="is being written by"):
        ensure_sample_set(tmp_path, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == [folder_lock.LOCK]


def test_another_users_lock_holds_too(tmp_path):
    """Who may not write to the lock's file may write into the folder."""
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    with tempfile.TemporaryDirectory() as folder, folder_lock.locked(Path(folder), ""):
        Path(folder).chmod(0o777)
        (Path(folder) / folder_lock.LOCK).chmod(0o644)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setgroups([])
                os.setuid(65534)
                with pytest.raises(BlockingIOError, match=f"process {os.getppid()} on"):
                    folder_lock.LOCKED.clear()
                    folder_lock.refuse_locked(Path(folder), "")
                with pytest.raises(BlockingIOError), folder_lock.locked(Path(folder), ""):
                    pass
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
