"""Efficiency, cost and metrics reports."""
