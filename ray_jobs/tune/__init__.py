"""Sweeps over training settings with Ray Tune."""
