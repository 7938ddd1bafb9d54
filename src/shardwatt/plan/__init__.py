"""What a cell will need, worked out before it runs."""
