"""A third-party package for dnnkit: one activation, one optimizer and one preset."""
