"""Choosing components from stored products."""
