"""What a run is configured by: the schema of the YAML files, how they are resolved and edited."""
