"""Metrics, reports and metrics for `evaluate`: numpy only."""
