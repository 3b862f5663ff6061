"""Runs alongside a stage and charges for it: its seconds, idle nodes, storage, live metrics."""
