"""The joint search for a recipe; `job` tells it."""
