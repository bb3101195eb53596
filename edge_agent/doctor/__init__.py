"""What is wrong with an agent's surroundings, and the line that mends it."""
