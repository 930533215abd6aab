"""Jobs that lay out for people what finished runs have measured: pages and pictures of them."""
