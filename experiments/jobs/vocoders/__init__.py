"""What vocoders make of speech tokens: what resynthesis loses, vocoders side by side, and the grid of their chunks."""
