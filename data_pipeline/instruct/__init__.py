"""Self-instruction: a teacher writes what users may ask of tools, and what it writes becomes dialogues (GPT4Tools)."""
