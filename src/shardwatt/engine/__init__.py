"""Inference engines: tokens in, tokens out, and when each phase began and ended."""
