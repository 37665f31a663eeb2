"""Boxes around objects, from the files that annotation tools write."""
