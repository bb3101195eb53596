"""Many agents seen from outside: who is there and how they are."""
