"""Pictures: reading from any format and depth, annotations, regions, tiles, and synthetic defects."""
