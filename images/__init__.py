"""Pictures: read from any format and depth, cut into tiles, given synthetic defects."""
