"""What can be read on a node, each behind the protocol of a meter."""
