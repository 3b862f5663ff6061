"""Versions of packages in MLflow: runs, aliases, approval and promotion."""
