"""Drift: are today's images like those that a model was validated on?"""
