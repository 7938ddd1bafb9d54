"""Units in names and messages: GiB for memory, J, W and s for energy, power and time; words for numbers."""

import math

GIB = 1024**3
MILLI = 1e-3
MICRO = 1e-6


def size_words(size_bytes: float) -> str:
    """A size of files in words: in GB of 10^9 bytes, or in MB below one."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def rounded(value: float) -> str:
    """A number to three significant digits, without exponent; `1,230` for 1234."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}"
