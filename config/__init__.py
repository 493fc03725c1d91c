"""The settings: keys, checks, presets and the paper's published values."""
