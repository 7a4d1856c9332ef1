"""The deployments that Ray Serve starts, scales and replaces."""
