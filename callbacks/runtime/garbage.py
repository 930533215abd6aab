"""Starting without garbage collection."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect no garbage inside; afterwards collection is on or off as before.

    Imports of torch, lightning and transformers make some 800,000 objects that stay, and collections meanwhile look at
    them again and again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
