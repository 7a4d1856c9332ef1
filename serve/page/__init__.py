"""The web page at `/`: three static files that talk to this service's own routes, and to nothing else."""
