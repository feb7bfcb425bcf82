"""The searches: over timestep schedules and over cache policies."""
