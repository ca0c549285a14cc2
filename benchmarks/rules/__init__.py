"""What the linter's rules are worth, on real images: `python -m benchmarks.rules` measures it and writes docs/rules.md."""
