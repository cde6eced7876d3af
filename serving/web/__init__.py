"""The playground: static files, no build step."""
