"""Where records come from: released files, a user's own, and what the project generates."""
