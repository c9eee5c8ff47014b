"""The composition root: a configuration -> objects of every room -> a result and its files."""
