"""What to run: YAML experiments, the code that composes and checks them, and the command line."""

import os

# Before PyTorch is loaded: threads that wait for each other spin only this briefly. Spinning without end makes a step
# several times slower as soon as anything else needs a core; not spinning at all makes every step a third slower.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
