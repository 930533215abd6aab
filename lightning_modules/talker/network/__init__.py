"""The network that every talker shares: anchors, attention and its masks, backbone, key-value cache."""
