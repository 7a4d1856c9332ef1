"""The agent: the loop of thoughts, calls and observations, its tools and what they answer."""
