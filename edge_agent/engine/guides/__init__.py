"""What an answer may be held to: guides, their grammars, their bounds, and the child that tries them."""
