"""Tools that run Hugging Face models."""
