"""Backups of what no run can make again: ledger, MLflow, run records, stage outputs, artifacts."""
