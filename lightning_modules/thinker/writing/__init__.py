"""Ways to write a reply token by token: where keys and values are kept, and when the host looks for the end."""
