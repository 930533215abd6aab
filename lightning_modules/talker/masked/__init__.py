"""What talkers that predict masked tokens share: noisy batches, their loss, and learning from a frozen teacher."""
