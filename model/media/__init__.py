"""Pictures and videos: read, fit, encode to mp4; the manifest inside an mp4. Free of torch."""
