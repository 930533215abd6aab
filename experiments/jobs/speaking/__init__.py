"""A trained system that one speaks with: loading it from any run or export, and jobs that let it answer."""
