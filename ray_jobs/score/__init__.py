"""Scores of files of predictions."""
