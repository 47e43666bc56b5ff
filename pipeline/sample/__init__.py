"""Generated people who act: the sample clip, so that nobody real is needed to try keyface."""
