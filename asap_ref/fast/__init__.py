"""The same names as in method, in less time; each is tested against the readable form."""
