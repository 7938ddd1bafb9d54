"""One cell: ranks started and watched, engine and meters held together, one outcome."""
