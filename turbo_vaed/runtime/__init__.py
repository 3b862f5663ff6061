"""What every part stands on: child processes, progress bars, the run around a stage."""
