"""Two runs on one folder: the second ends with the owner's name; a killed one does not block the next."""

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
from storage import folder_lock
from training import checkpoint

ROOT = Path(__file__).parents[2]
HOLDER = """
import pathlib, sys
from storage import folder_lock
with folder_lock.locked(pathlib.Path(sys.argv[1]), ""):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Yield a running process that has the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_ends_with_the_owner_of_the_folder(holder, run_main, tmp_path):
    """Both locks, of the checkpoint folder and of the results folder, give one line and exit code 2."""
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


def test_a_killed_run_releases_its_lock(holder, tmp_path):
    with pytest.raises(BlockingIOError, match=f"process {holder.pid}"), folder_lock.locked(tmp_path, "go elsewhere"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / folder_lock.LOCK).exists()
    folder_lock.refuse_locked(tmp_path, "")
    with folder_lock.locked(tmp_path, ""):
        assert json.loads((tmp_path / folder_lock.LOCK).read_text())["pid"] == os.getpid()
        folder_lock.refuse_locked(tmp_path, "")  # a run's own lock does not stop it
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("note", ["", "{", "[]", "[" * 100_000, '{"command": "\\u001b[2J\\n"}'])
def test_a_damaged_note_does_not_stop_a_run(tmp_path, note):
    path = tmp_path / folder_lock.LOCK
    path.write_text(note)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError) as caught:
            folder_lock.refuse_locked(tmp_path, "go elsewhere")
        assert str(caught.value).isprintable() and "go elsewhere" in str(caught.value)
    folder_lock.refuse_locked(tmp_path, "")


def test_only_one_of_many_threads_has_the_lock(tmp_path):
    """The file is removed and created all the time: no thread may lock one that has lost its name."""
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
                time.sleep(0)  # let another thread run
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=take_turns) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and most == 1 and entered == 4 * 40


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".old.part").touch()
    (tmp_path / ".new.part").touch()
    os.utime(tmp_path / ".old.part", (0, 0))
    with checkpoint.locked(tmp_path):
        checkpoint.save(tmp_path / "1", {})
    folder_lock.refuse_locked(tmp_path, "")
    assert "can't be locked (No locks available); start no second run on it" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".new.part", "1"]


def test_a_sample_set_that_another_run_creates_is_left_alone(holder, tmp_path):
    with pytest.raises(BlockingIOError, match="is being written by"):
        ensure_sample_set(tmp_path, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == [folder_lock.LOCK]


def test_the_lock_of_another_user_holds(tmp_path):
    """A user who may not write to the lock's file may still write into the folder."""
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
