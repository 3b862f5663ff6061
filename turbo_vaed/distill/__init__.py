"""Distillation: losses, the training loop, checkpoints, Ray Train wiring."""
