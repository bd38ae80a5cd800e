"""Messages, links and rings between processes: see README.md."""
