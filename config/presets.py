"""Presets: settings that belong together, as `preset: laptop` in config.yaml or on the command line.

They override the file; the command line overrides them. benchmarks/accuracy.md has the measurements behind `laptop`.
"""

from config.keys import Values

PUBLISHED, LAPTOP = "published", "laptop"

PRESETS: dict[str, Values] = {
    PUBLISHED: {"score.protocol": "published", "speed.precision": "fp32"},  # config.yaml has all the rest
    LAPTOP: {
        # compare with normal pictures at 512 pixels; the UNet sees 64
        "data.image_size": 512,
        "data.batch_size": 16,
        "data.tiles": None,
        "data.fit": "auto",
        "model.unet_size": 64,
        "model.base_channels": 32,
        "model.channel_multipliers": [0.5, 1, 2, 2],
        "model.blocks_per_level": 1,
        "model.attention_sizes": [8],
        "model.heads": 2,
        "model.dropout": 0,
        "model.feature_extractor": "efficientnet_lite0",
        "model.learning_rate": 6e-4,
        "model.weight_decay": 0.01,
        "model.epochs": "auto",
        "model.load_chp": "latest",
        "training.budget_minutes": 60.0,
        "training.most_steps": 4000,  # no longer run was measured
        "training.optimizer": "adamw",
        "training.schedule": "wsd",
        "training.warmup_steps": 50,
        "training.ema": 0.995,
        "training.highest_step": 250,
        "model.DA_epochs": 0,  # the features as pretrained
        "model.DA_chp": 0,
        "model.w": 5,
        "model.blur_sigma": 2,  # a quarter of the published share of the picture: defects are small
        "model.test_trajectory_steps": 250,
        "model.skip": 25,  # ten network calls, as published
        "score.protocol": "per_image",
        "score.draws": 1,
        "score.parts": ["memory", "wide_memory", "whole_memory", "pixel"],
        "score.pooling": "maximum",
        "calibration.method": "cross",
        "calibration.pictures": 300,  # more cost minutes
        "metrics.centre_crop": 1,
    },
}
