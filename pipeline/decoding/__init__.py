"""Decoders for files that Pillow reads wrongly or not at all (TIFF, deep PGM/PPM), and conversion to 8 bits."""
