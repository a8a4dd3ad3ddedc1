"""Operators of the permutohedral lattice."""
