"""What everything stands on (no torch)."""
