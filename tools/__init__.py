"""Command lines: parse, wire, print."""
