"""Metrics, evaluation protocols and result tables."""
