"""The machinery of a study: budgets, plans, trials, the training loop and its adapters. It names no energy and no loss."""
