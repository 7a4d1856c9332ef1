"""Runs in MLflow, and the bundles that they end in."""
