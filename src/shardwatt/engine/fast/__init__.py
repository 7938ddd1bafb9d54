"""An inference loop near the hardware's limit: the same weights, precision and distribution of tokens.

Letters in shapes: R rows of the batch, N tokens of a packed prefill, T positions of the cache, L layers, H
query heads and G key and value heads of this rank, n = H / G, D size of a head, dim width of the residual
stream.
"""
