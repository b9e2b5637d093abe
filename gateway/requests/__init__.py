"""One image request, from its body to its result."""
