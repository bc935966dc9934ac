"""The machinery of a study: budgets, plans, trials, the training loop and its adapters. No energy, no loss."""
