"""Settings that belong together, by name: `preset: laptop` in config.yaml or on the command line.

They go above the file's and below the command line's. What the laptop's were chosen by is in benchmarks/accuracy.md.
"""

from typing import Any

PUBLISHED, LAPTOP = "published", "laptop"
BUDGET = 60.0  # minutes, of the laptop preset

PRESETS: dict[str, dict[str, Any]] = {
    PUBLISHED: {"score.protocol": "published", "speed.precision": "fp32"},  # all else is in config.yaml, or `auto`
    LAPTOP: {
        # pictures are compared with normal ones at 512 pixels; the UNet sees them at 64
        "data.image_size": 512,
        "data.batch_size": 16,
        "data.tiles": None,
        "model.unet_size": 64,
        "model.base_channels": 32,
        "model.channel_multipliers": [0.5, 1, 2, 2],
        "model.blocks_per_level": 1,
        "model.attention_sizes": [8],
        "model.heads": 2,
        "model.dropout": 0,
        "model.feature_extractor": "efficientnet_lite0",
        # stage 1
        "model.learning_rate": 6e-4,
        "model.weight_decay": 0.01,
        "model.epochs": "auto",
        "model.load_chp": "latest",
        "training.budget_minutes": BUDGET,
        "training.most_steps": 4000,  # what more would give is not measured
        "training.optimizer": "adamw",
        "training.schedule": "cosine",
        "training.warmup_steps": 50,
        "training.ema": 0.995,
        "training.highest_step": 250,
        # stage 2: features as pretrained
        "model.DA_epochs": 0,
        "model.DA_chp": 0,
        # stage 3
        "model.w": 5,
        "model.blur_sigma": 2,  # a quarter of the published, relative to the picture, as defects are small
        "model.test_trajectory_steps": 250,
        "model.skip": 25,  # ten calls of the network, as published
        "score.protocol": "per_image",
        "score.draws": 1,
        "score.parts": ["memory", "wide_memory", "whole_memory", "pixel"],
        "score.pooling": "maximum",
    },
}
