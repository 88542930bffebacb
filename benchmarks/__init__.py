"""What mesh costs and what its peers cost, measured side by side: `python -m benchmarks --help`.

Owns: contestants, loads, rounds, verdicts, and the table, the plots and the page made from the figures.
Leaves to others: whether things are right (tests). Nothing in here is imported by mesh.
"""
