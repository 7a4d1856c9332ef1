"""From answers to scores, intervals, baselines and tables."""
