"""Presets: settings that belong together, as `preset: laptop` in config.yaml or on the command line.

They override the file; the command line overrides them. benchmarks/accuracy.md has the measurements behind `laptop`.
"""

from config.keys import Values

PUBLISHED, LAPTOP, LAPTOP_DIFFUSION = "published", "laptop", "laptop-diffusion"
LAPTOP_UNET, LAPTOP_PIXELS = "laptop-unet", "laptop-pixels"  # those of earlier versions

ON_FEATURES: Values = {
    # features of pictures at 512 pixels, learnt position by position on their grid of 64
    "data.image_size": 512,
    "data.batch_size": 16,
    "data.tiles": None,
    "data.fit": "auto",
    "model.network": "patch",
    "model.unet_size": 64,
    "model.feature_channels": 152,  # all of efficientnet_lite0
    "model.base_channels": 256,
    "model.blocks_per_level": 3,
    "model.dropout": 0,
    "model.predicts": "x0",
    "model.feature_extractor": "efficientnet_lite0",
    "model.learning_rate": 1e-3,
    "model.weight_decay": 0.01,
    "model.epochs": "auto",
    "model.load_chp": "latest",
    "training.budget_minutes": 60.0,
    "training.most_steps": 20_000,  # no longer run was measured
    "training.optimizer": "adamw",
    "training.schedule": "wsd",
    "training.warmup_steps": 50,
    "training.ema": 0.998,
    "training.highest_step": None,
    "model.DA_epochs": 0,  # the features as pretrained
    "model.DA_chp": 0,
    "model.w": 0,
    "model.blur_sigma": 2,  # a quarter of the published share of the picture: defects are small
    "model.test_trajectory_steps": 200,
    "model.skip": None,  # one network call
    "score.protocol": "per_image",
    "score.space": "features",
    "score.draws": 1,
    "score.parts": ["memory", "wide_memory", "whole_memory", "diffusion"],
    "score.weights": "measured",
    "score.pooling": "maximum",
    "calibration.method": "cross",
    "calibration.pictures": 300,  # more cost minutes
    "metrics.centre_crop": 1,
}
WITH_UNET: Values = {  # what differs where a UNet learns features, averaged to a grid of 32
    "model.network": "unet",
    "model.unet_size": 32,
    "model.feature_channels": 48,
    "model.base_channels": 32,
    "model.channel_multipliers": [1, 2],
    "model.blocks_per_level": 1,
    "model.attention_sizes": [16],
    "model.heads": 2,
    "model.learning_rate": 6e-4,
    "training.most_steps": 4000,  # no longer run was measured
    "training.ema": 0.995,
    "model.test_trajectory_steps": 450,
    "model.skip": 90,  # five network calls
}
ON_PIXELS: Values = {  # what differs where it learns pictures, of 64 pixels
    "model.unet_size": 64,
    "model.channel_multipliers": [0.5, 1, 2, 2],
    "model.attention_sizes": [8],
    "model.predicts": None,
    "model.w": 5,
    "model.test_trajectory_steps": 250,
    "model.skip": 25,  # ten network calls, as published
    "training.highest_step": 250,
    "score.space": "pixels",
    "score.parts": ["memory", "wide_memory", "whole_memory", "pixel"],
    "score.weights": "equal",
}
PRESETS: dict[str, Values] = {
    PUBLISHED: {"score.protocol": "published", "speed.precision": "fp32"},  # config.yaml has all the rest
    LAPTOP: ON_FEATURES,
    LAPTOP_DIFFUSION: ON_FEATURES | {"score.parts": ["diffusion"]},  # no memory of normal pictures
    LAPTOP_UNET: ON_FEATURES | WITH_UNET,
    LAPTOP_PIXELS: ON_FEATURES | WITH_UNET | ON_PIXELS,
}
