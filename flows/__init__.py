"""Prefect flows: when, for whom, retries, timeouts, and the side effects after the gate."""
