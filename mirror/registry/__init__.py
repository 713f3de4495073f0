"""What a mirror and a registry do. No HTTP, no SQL."""
