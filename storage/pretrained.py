"""Pretrained weights over the network: by a known name alone, and only with the content that their publisher's hash says.

Nothing else is ever fetched. Files of torchvision and of timm's own addresses carry the first digits of their SHA-256 in their name; the
Hugging Face hub keeps each large file under its whole SHA-256. All are looked at whenever they are used, not only when they are new.
"""

import contextlib
import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch

from runtime.errors import UserError, UserFileError

HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z.]+")
HUB_FILE = re.compile(r"[0-9a-f]{64}")
HUB_NAMES = ("model.safetensors", "pytorch_model.bin")  # under which timm looks for weights in a repository of the hub


def cached_file(url: str) -> Path | None:
    """Where torch has already downloaded the file of this address, if it has."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    return path if path.is_file() else None


def torchvision_state(published: Any) -> dict[str, Any]:
    """The weights of one of torchvision's entries, from its cache or the network. Raises OSError where they are not what they should be."""
    there = cached_file(published.url)
    if there:
        check_hash(there, hash_in(published.url))
    with contextlib.redirect_stderr(sys.stdout):  # torch announces the download on stderr
        return published.get_state_dict(progress=False, check_hash=True, weights_only=True)


def timm_source(model_name: str) -> str:
    """The repository of the hub or the address that timm has a model's weights from. Raises ValueError where that gives no hash."""
    published = timm.get_pretrained_cfg(model_name)
    if published is None or not (published.hf_hub_id or published.url):
        raise UserError("timm has no weights of it")
    if published.hf_hub_id:
        return str(published.hf_hub_id)
    hash_in(str(published.url))
    return str(published.url)


def timm_model(model_name: str, **arguments: Any) -> torch.nn.Module:
    """timm's model with its published weights. Raises OSError where they are not what they should be."""
    source = timm_source(model_name)
    timm.models.set_pretrained_check_hash(True)
    network = timm.create_model(model_name, pretrained=True, **arguments)
    for path, digits in timm_files(source):
        check_hash(path, digits)
    return network


def timm_files(source: str) -> list[tuple[Path, str]]:
    """The files in the caches that timm has just taken weights from, with their hashes."""
    if "://" in source:
        path = cached_file(source)
        return [(path, hash_in(source))] if path else []
    found = (huggingface_hub.try_to_load_from_cache(source, name) for name in HUB_NAMES)
    files = [(Path(path), Path(path).resolve().name) for path in found if isinstance(path, str)]
    return [(path, digits) for path, digits in files if HUB_FILE.fullmatch(digits)]


def hash_in(url: str) -> str:
    """The first digits of the SHA-256 that a published address holds. Raises ValueError where it holds none."""
    found = HASH_IN_NAME.search(url.rsplit("/", 1)[1])
    if found is None:
        raise UserError(f"{url} names no hash")
    return found[1]


def check_hash(path: Path, digits: str) -> None:
    """Raises OSError where the SHA-256 of a file does not begin with these digits."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if not found.startswith(digits):
        raise UserFileError(f"{path} is damaged: its SHA-256 is {found[: len(digits)]}, not {digits}; remove it")
