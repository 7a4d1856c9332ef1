"""What every route shares: access, bodies, uploads, addresses, errors, telemetry."""
