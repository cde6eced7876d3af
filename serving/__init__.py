"""Everything between a request and an mp4."""
