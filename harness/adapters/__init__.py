"""The only files that import an outside tool (Ray, Optuna, MLflow), one tool a file."""

import os

MLFLOW = {
    # A study tells nobody about itself unless its user asks for it.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A connection for each write: a kept one would go on writing into a file that was removed or replaced.
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
    # A server that does not answer must not hold up a study for minutes: records can wait, see PatientRecorder.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""MLflow reads these while it is imported, and an environment that has them keeps its own."""
for _name, _value in MLFLOW.items():
    os.environ.setdefault(_name, _value)
