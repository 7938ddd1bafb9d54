"""DCGM's job statistics, through `dcgmi`."""
