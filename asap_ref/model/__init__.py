"""A Transformer without autograd, trained with one attention and compiled into another."""
