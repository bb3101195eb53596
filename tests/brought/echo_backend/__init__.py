"""A backend as a package brings it: it says a prompt's words again, one each a token."""
