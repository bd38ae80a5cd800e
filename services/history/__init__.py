"""history: the event logs of all sources -> a database."""
