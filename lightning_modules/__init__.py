"""LightningModules of the speech LLM and the pure-torch rooms they are built from."""
