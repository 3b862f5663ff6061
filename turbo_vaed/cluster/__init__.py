"""The Ray cluster that a run works on: its session, its nodes, and what becomes of them."""
