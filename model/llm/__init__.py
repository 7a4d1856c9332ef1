"""The language model with its projector and adapters, and the bundle that it is delivered in."""
