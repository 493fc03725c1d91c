"""A user's mistake is one line; a fault of the program keeps its traceback."""

import errno
import os

import pytest
import torch

from commands import stages
from runtime.errors import MissingFileError, UserError, UserFileError, explain_error, one_line


def raiser(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("model.w is -1;\n  raise it"), "model.w is -1; raise it"),
        (UserFileError("can't read x"), "can't read x"),
        (MissingFileError("no x"), "no x"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "x"), "[Errno 13] Permission denied: 'x'"),
        (ModuleNotFoundError("no", name="tensorboard"), "the package tensorboard is missing; python -m pip install"),
        (MemoryError(), "out of memory; lower data.batch_size"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory; lower data.batch_size"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_the_users_mistakes_and_surroundings_are_explained(error, line):
    assert explain_error(error).startswith(line)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shapes"),
        RuntimeError("mat1 and mat2"),
        OSError("no errno"),
        KeyError("x"),
        ValueError("out of memory"),
    ],
    ids=repr,
)
def test_other_errors_are_faults_of_the_program(error):
    assert explain_error(error) is None


def test_a_lost_process_is_explained_only_where_there_are_several(monkeypatch):
    error = RuntimeError("[gloo] Connection closed by peer")
    assert explain_error(error) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start the run again with --resume" in explain_error(error)


def test_control_characters_are_not_printed():
    assert one_line(UserError("a\x1b[2J\x9b.png")) == "a?[2J?.png"
    assert one_line(UserError()) == "UserError"


@pytest.mark.parametrize("flag", ["--train", "--domain_adaptation", "--detection"])
@pytest.mark.parametrize("categories", ["nut", "[nut, other]"])
def test_a_fault_in_a_stage_keeps_its_traceback(run_main, monkeypatch, flag, categories):
    for stage in ("check_training", "check_adaptation", "check_evaluation"):
        monkeypatch.setattr(stages, stage, raiser(ValueError("operands could not be broadcast")))
    with pytest.raises(ValueError, match="could not be broadcast"):
        run_main(flag, f"data.category={categories}")


def test_a_shape_error_of_torch_in_a_stage_keeps_its_traceback(run_main, monkeypatch):
    monkeypatch.setattr(stages, "train_unet", lambda *_, **__: torch.ones(2, 3) @ torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run_main("--train")


@pytest.mark.parametrize("error", [UserError("model.w is -1; raise it"), OSError(errno.ENOSPC, "No space left", "x")])
def test_a_mistake_in_a_stage_is_one_line_and_exit_code_2(run_main, monkeypatch, error):
    monkeypatch.setattr(stages, "train_unet", raiser(error))
    code, out, err = run_main("--train")
    assert code == 2 and err == f"error: {error}\n" and "Traceback" not in out


def test_traceback_shows_where_a_users_error_was_raised(run_main, monkeypatch):
    monkeypatch.setattr(stages, "train_unet", raiser(UserError("model.w is -1; raise it")))
    with pytest.raises(UserError):
        run_main("--train", "--traceback")
