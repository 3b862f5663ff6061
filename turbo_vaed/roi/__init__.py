"""The return on investment of a PoC: its inputs, its formula, and which inputs matter most."""
