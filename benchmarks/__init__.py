"""Measurements of redif-ray, run from a checkout as `python -m benchmarks.NAME`. README.md lists the names."""
