"""What several tests share: a clip whose truth is known, a model that sees it, and a real group of processes."""
