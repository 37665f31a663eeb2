"""Shortcuts in deepfake data: what gives the labels away without looking at faces."""
