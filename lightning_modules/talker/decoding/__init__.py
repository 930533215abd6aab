"""How blocks are filled and streamed: unmasking, refinement, sampling, and the loop over blocks."""
