"""One file for each migration, named for its revision."""
