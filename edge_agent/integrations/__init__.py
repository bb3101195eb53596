"""What other people's monitoring reads of an agent."""
