"""maskmill: automatic mask generation with Segment Anything, from object storage to Parquet, on Ray."""
