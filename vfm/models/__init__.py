"""Backbones and heads: what turns pixels into raw answers. Nothing here knows a loss, a metric or a data set."""
