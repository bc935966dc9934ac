"""The mathematics of Boltzmann generators: targets, fields, flows, objectives, estimators. Torch only, no machinery."""
