"""Offline data: device-resident datasets, goal relabelling, sources on disk and collection."""
