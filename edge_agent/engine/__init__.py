"""What is behind every model: the contract of backends, their messages, the child; a folder for each library."""
