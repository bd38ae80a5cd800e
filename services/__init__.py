"""The five services, one process each."""
