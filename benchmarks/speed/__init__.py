"""How fast a denoising step is: against the original way, at full size, and as it grows.

``python -m benchmarks.speed cpu | vae | full-size | scaling | startup``.
"""
