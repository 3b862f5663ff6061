"""Before a run: its prices, its estimated cost, where it would be cheapest, whether params fit."""
