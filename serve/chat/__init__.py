"""OpenAI's chat form, from a request to its answer; the way to a ranking, which selections without a chat take too."""
