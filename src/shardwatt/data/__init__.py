"""Prompts: data sets fetched and checked, sampled, put into their templates, and tokenised."""
