"""What a benchmark of decoding shows: its figures, and the tables and pictures that are made of them."""
