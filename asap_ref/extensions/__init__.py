"""Ours beyond the paper, a file each: more families of features, and heads with mechanisms of their own."""
