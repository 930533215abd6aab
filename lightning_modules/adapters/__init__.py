"""LoRA by peft on any part of the system: settings, PEFT folders, several adapters of one base, merging."""
