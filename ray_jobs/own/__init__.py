"""From a folder with one's own tools to a served model in one go: each stage is the verb of that name."""
