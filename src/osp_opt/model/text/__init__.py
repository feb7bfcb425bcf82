"""Prompts: cleaning, tokens, the mT5 encoder."""
