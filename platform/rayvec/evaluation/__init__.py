"""Evaluation: scores of rankings with intervals, tables and plots. Knows no encoder and no index."""
