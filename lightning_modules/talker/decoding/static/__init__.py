"""Static block decoding: a block is one function of tensors, over caches that stay in place, for many rows at once."""
