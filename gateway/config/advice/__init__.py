"""What is valid in a configuration and will probably not do what its author wants."""
