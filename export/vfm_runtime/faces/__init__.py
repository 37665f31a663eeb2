"""Faces: found, chosen, and cut out aligned by five points."""
