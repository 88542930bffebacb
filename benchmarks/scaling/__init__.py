"""What mesh costs at 10, 100 and 1,000 hosts: `python -m benchmarks.scaling`, and docs/scaling.md that explains it."""
