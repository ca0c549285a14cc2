"""The documentation, and what makes those pages of it that are read off the code."""
