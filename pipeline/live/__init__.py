"""Streams: live sources and sinks, controls, the status page, figures and logs."""
