"""Measures of what was made: clips, photos of people, reenactors. Nothing that anonymises uses them."""
