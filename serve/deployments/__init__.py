"""The Ray Serve deployments, and the calls between them."""
