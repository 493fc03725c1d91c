"""Build the UNet and the noise schedule that the settings describe; prepare networks for inference."""

import torch
from torch import nn

from config.keys import PATCH, Settings
from dataset import SQUARE, View
from ddad import NoiseSchedule
from feature_extractor import FeatureExtractor
from runtime.errors import UserError
from training.patch_network import PatchNetwork
from unet import UNet

Denoiser = UNet | PatchNetwork


def build_unet(settings: Settings) -> Denoiser:
    """Return the untrained network. Raise UserError where its shape does not fit the pictures."""
    if settings.model.network == PATCH:
        return PatchNetwork(**settings.patch_network_arguments())
    try:
        return UNet(**settings.unet_arguments())
    except ValueError as error:
        raise UserError(str(error)) from error


def build_schedule(settings: Settings) -> NoiseSchedule:
    """Return the noise schedule. Raise UserError where it leaves no signal."""
    try:
        return NoiseSchedule(**settings.schedule_arguments())
    except ValueError as error:
        raise UserError(str(error)) from error


def prepare_features(extractor: FeatureExtractor, view: View, device: torch.device) -> nn.Module:
    """Return the feature extractor, prepared for the shapes of the view."""
    extractor.enlarges_by_area = view.fit != SQUARE
    return prepare_network(extractor, device)


def prepare_network(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network on the device, for inference, in the memory layout that runs fastest."""
    return network.to(device).to(memory_format=torch.channels_last).eval()
