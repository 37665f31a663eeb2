"""Answers over HTTP: the Open Inference Protocol, a route for files, a page to try it, and metrics.

Needs the extra `server`. Nothing here is imported by the rest of the package.
"""
