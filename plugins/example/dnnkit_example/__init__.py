"""A third-party package for dnnkit: one activation, one optimizer, one task and one preset."""
