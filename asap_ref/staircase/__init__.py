"""Potentials of samples of unequal size, with weights or padded: the general case behind method/potentials.py."""
