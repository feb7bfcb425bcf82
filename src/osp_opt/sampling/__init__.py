"""From noise to video: schedules, noise, samplers and the pipeline (nothing is imported here)."""
