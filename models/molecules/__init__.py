"""Molecules: their topology, geometry and energies."""
