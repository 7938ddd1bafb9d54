"""shardwatt: what LLM inference costs in energy and time, measured over a matrix of cells."""

__version__ = "0.1.0"
