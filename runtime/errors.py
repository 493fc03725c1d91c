"""Errors that the user can mend, and the line that the command line prints for them."""

import os
import re

# Parts of torch's messages
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "Storage size calculation overflowed")
CONNECTION_LOST = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "NCCL")


class UserError(ValueError):
    """A mistake that the user can mend; the message names the thing, its value and the remedy in one line."""


class UserFileError(UserError, OSError):
    """A file or folder that cannot be read or written."""


class MissingFileError(UserFileError, FileNotFoundError):
    """A file or folder that does not exist."""


def explain_error(error: Exception) -> str | None:
    """Return the error in one line that names its remedy; None for a fault of this program."""
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is missing; python -m pip install -r requirements.txt"
    if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno is not None):  # such as a full disk
        return one_line(error)
    text = str(error) if isinstance(error, RuntimeError) else ""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and any(words in text for words in CONNECTION_LOST):
        return "another process of this run has ended; start the run again with --resume"
    if isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
        return "out of memory; lower data.batch_size, DA_batch_size, test_batch_size, image_size or model.base_channels"
    return None


def one_line(error: BaseException) -> str:
    """Return the message without line ends and control characters, which file names may contain."""
    text = re.sub(r"\s*\n\s*", " ", str(error)).strip() or type(error).__name__
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", text)
