"""What every route shares: bodies, uploads, addresses, access, telemetry."""
