"""What keeps a long training safe and visible: checkpoints, interrupts, progress."""
