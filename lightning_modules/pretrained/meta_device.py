"""Parts without weights."""

import torch


def is_on_meta() -> bool:
    """Tell whether parts are built without weights, under ``with torch.device("meta")``, to check their settings."""
    return torch.get_default_device().type == "meta"
