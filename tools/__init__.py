"""What `./run` does."""
