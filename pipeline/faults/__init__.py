"""Faults made on purpose, and the count of raw faces that come out."""
