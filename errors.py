"""Errors in one line, as the command line says them."""

import re

import parallel

MEMORY_SPENT = ("out of memory", "not enough memory", "can't allocate memory", "Storage size calculation overflowed")  # as torch says it
MEMORY_EATERS = ("data.batch_size", "data.DA_batch_size or data.test_batch_size", "data.image_size", "model.base_channels")


def explained(error: Exception) -> str | None:
    """An error in one line that names its remedy; None for what is a fault of this program."""
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is missing; python -m pip install -r requirements.txt"
    if isinstance(error, (ValueError, OSError)):
        return one_line(error)
    if parallel.lost(error):
        return "another process of this run has ended; start it again with --resume"
    if memory_spent(error):
        return f"out of memory; lower {', '.join(MEMORY_EATERS)}"
    return None


def memory_spent(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in MEMORY_SPENT)


def one_line(error: BaseException) -> str:
    """What it says, without line ends and without what a terminal obeys: names of files may hold both."""
    text = re.sub(r"\s*\n\s*", " ", str(error)).strip() or type(error).__name__
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", text)
