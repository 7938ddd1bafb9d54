"""Finished cells to tidy tables, intervals, figures and the report; never touches torch."""
