"""Data on the device: datasets, kinds of batches, goal relabelling, returns, replay."""
