"""Flows: a base distribution, a vector field, and the solver that carries one along the other."""
