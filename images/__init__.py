"""Pictures: reading from any format and depth, tiles, and synthetic defects."""
