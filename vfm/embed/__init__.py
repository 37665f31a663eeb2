"""Embed images once: folders and tables into a store of vectors that search, heads and other tools read."""
