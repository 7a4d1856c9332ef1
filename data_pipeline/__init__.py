"""Records, the catalogue, sources, prompts, media, the corpus and the feature lake. Imports no other package here."""
