"""Files: written whole, locked, named safely; pretrained weights and fingerprints of what made a result."""
