"""Files: atomic writes, locks, safe names, weights, and fingerprints of results."""
