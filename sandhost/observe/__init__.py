"""Seeing what a host does: metrics, traces, profiles, views."""
