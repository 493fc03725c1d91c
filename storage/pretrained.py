"""Fetch pretrained weights: by a known name only, and only with the content that the publisher's SHA-256 describes.

torchvision's file names and timm's addresses contain its first digits; the Hugging Face hub names files by the hash.
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
from torch import Tensor
from torchvision.models import WeightsEnum

from runtime.errors import UserError, UserFileError

HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z.]+")
HUB_FILE = re.compile(r"[0-9a-f]{64}")
HUB_NAMES = ("model.safetensors", "pytorch_model.bin")  # where timm looks for weights in a repository of the hub


def cached_file(url: str) -> Path | None:
    """Return torch's cached file of this address; None where it is not downloaded."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    return path if path.is_file() else None


def torchvision_state(published: WeightsEnum) -> dict[str, Tensor]:
    """Return torchvision's weights, cached or downloaded. Raise UserFileError where their hash is wrong."""
    if cached := cached_file(published.url):
        check_hash(cached, hash_in(published.url))
    with contextlib.redirect_stderr(sys.stdout):  # torch announces the download on stderr
        return dict(published.get_state_dict(progress=False, check_hash=True, weights_only=True))


def timm_source(model_name: str) -> str:
    """Return the hub repository or the address of a model's weights. Raise UserError where it has no hash."""
    published = timm.get_pretrained_cfg(model_name)
    if published and published.hf_hub_id:
        return str(published.hf_hub_id)
    if not (published and published.url):
        raise UserError("timm has no weights of it")
    hash_in(str(published.url))
    return str(published.url)


def timm_model(model_name: str, **arguments: Any) -> torch.nn.Module:
    """Return timm's model with its published weights. Raise UserFileError where their hash is wrong."""
    source = timm_source(model_name)
    timm.models.set_pretrained_check_hash(True)
    network = timm.create_model(model_name, pretrained=True, **arguments)
    for path, digits in timm_files(source):
        check_hash(path, digits)
    return network


def timm_files(source: str) -> list[tuple[Path, str]]:
    """Return the cached files that timm took weights from, each with the first digits of its hash."""
    if "://" in source:
        path = cached_file(source)
        return [(path, hash_in(source))] if path else []
    cached = (huggingface_hub.try_to_load_from_cache(source, name) for name in HUB_NAMES)
    files = [(Path(path), Path(path).resolve().name) for path in cached if isinstance(path, str)]
    return [(path, digits) for path, digits in files if HUB_FILE.fullmatch(digits)]


def hash_in(url: str) -> str:
    """Return the first digits of the SHA-256 in an address. Raise UserError where there are none."""
    match = HASH_IN_NAME.search(url.rsplit("/", 1)[1])
    if match is None:
        raise UserError(f"{url} contains no hash, so that its content cannot be checked")
    return match[1]


def check_hash(path: Path, digits: str) -> None:
    """Raise UserFileError where the SHA-256 of a file does not begin with these digits."""
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if not actual.startswith(digits):
        raise UserFileError(f"{path} is damaged: its SHA-256 is {actual[: len(digits)]}, not {digits}; remove it")
