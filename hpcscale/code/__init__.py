"""A program's files on their way to a site: which go along, their hashes, how they arrive there."""
