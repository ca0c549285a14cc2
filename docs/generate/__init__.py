"""`python -m docs.generate` writes the pages that are read off the code: docs/catalogue.md with its figures."""
