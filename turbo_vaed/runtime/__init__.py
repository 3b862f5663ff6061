"""What every part stands on: whole files, child processes, progress bars."""
