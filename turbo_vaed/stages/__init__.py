"""One module per DVC stage, each with one public function: `run(workspace)`."""
