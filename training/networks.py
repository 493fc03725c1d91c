"""Build the UNet and the noise schedule that the settings describe."""

from config.keys import Settings
from ddad import NoiseSchedule
from runtime.errors import UserError
from unet import UNet


def build_unet(settings: Settings) -> UNet:
    """Return the untrained network. Raise UserError where its shape does not fit the pictures."""
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
