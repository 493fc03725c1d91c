"""Settings: their keys, their checks, presets and the published values."""
