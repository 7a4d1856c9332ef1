"""The wide part of a model: a linear reading of words and medium, which remembers what the deep part generalises."""
