"""Foreign media decoded in processes that are shut in, apart from ingress and encoder."""
