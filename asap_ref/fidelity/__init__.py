"""How faithful a compiled model is to its teacher, how hard its attention is, and whether data have drifted."""
