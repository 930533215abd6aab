"""What to run: YAML experiments, the code that composes and checks them, and the command line."""
