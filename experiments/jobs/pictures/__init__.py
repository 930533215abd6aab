"""Pictures for the pages of documentation, taken of the real programs by jobs."""
