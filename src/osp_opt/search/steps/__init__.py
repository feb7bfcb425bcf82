"""The search for timesteps; `job` tells it."""
