"""Many agents seen from outside: who is there and how they are, and made-up ones to look at."""
