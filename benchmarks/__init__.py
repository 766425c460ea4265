"""What measures redif-ray; from a checkout, `python -m benchmarks.NAME`. README.md lists the names."""
