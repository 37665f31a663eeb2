"""Audit: what is wrong with data before a model is trained on it, and with a model before it is used."""
