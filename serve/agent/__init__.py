"""The agent: the loop of thoughts, calls and observations, its memory and its tools."""
