"""Virtual people in motion: casting, rendering, warping, and looks at the result."""
