"""What the published notebooks import from `segment_anything.utils`."""
