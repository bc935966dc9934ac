# What every shell on a node of a cluster needs, sourced by ~/.bashrc: this checkout, its environment, and the token
# without which nobody may speak to the cluster.
export BOLTZMANN_BUDGET="$HOME/boltzmann-budget"
export PATH="$BOLTZMANN_BUDGET/.venv/bin:$PATH"
export PYTHONPATH="$BOLTZMANN_BUDGET"
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
