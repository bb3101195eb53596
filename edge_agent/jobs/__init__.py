"""What was asked, what became of it, and the durable queue between the two."""
