"""The parts of `segment_anything.utils` that the published notebooks import."""
