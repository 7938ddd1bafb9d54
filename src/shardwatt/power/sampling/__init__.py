"""The sampler of a node, and the files that it writes."""
