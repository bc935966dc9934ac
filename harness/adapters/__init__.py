"""The only files that import an outside tool (Ray, Optuna, MLflow), one tool a file."""
