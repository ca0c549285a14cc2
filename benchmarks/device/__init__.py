"""What a machine with a GPU has to show: `python -m benchmarks.device`, or `make device`, at most eight minutes."""
