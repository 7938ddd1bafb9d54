"""Units used in names and messages: GiB for memory, J, W and s for energy, power and time."""

GIB = 1024**3
MILLI = 1e-3
MICRO = 1e-6
