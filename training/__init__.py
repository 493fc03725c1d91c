"""The parts that both training stages share: checkpoints, training states, logs, the cache of decoded pictures."""
