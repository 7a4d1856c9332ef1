"""What a config will take, computed before it runs."""
