"""What both training stages share: checkpoints, training states, logs and the cache of decoded pictures."""
