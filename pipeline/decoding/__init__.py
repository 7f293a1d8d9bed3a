"""What Pillow cannot decode, or decodes wrongly: TIFF, 16-bit PNG and deep PNM; and samples of any depth to 8 bits."""
