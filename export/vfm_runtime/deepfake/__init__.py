"""Deepfake detection: faces, crops, decisions, verdicts and heatmaps."""
