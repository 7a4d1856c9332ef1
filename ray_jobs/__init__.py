"""The command line and the Ray jobs behind it: prepare, embed, train, evaluate, score, export, demo."""
