"""The benchmark against the field: one run, side by side, on the bundled model.

``python -m benchmarks`` runs every section; see `benchmarks.__main__`.
"""
