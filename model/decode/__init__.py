"""Writing answers: under the catalogue's trie, freely, and as turns of a dialogue."""
