"""Rules that make jobs of what others publish, and the subscriber that follows them."""
