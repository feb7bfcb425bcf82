"""The search for what to reuse; `job` tells it."""
