"""Potentials of samples of unequal size, weighted, padded or of the squared cost: the rest of method/potentials.py."""
