"""What evaluation measures, one idea a file."""
