"""What a PoC returns: its inputs, its formula, and what that hinges on."""
