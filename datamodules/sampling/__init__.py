"""Which examples form which batch: epoch plans, the walk through them, and loaders that resume in mid-epoch.

Plans are pure functions of lengths, seed, epoch and number of devices; nothing here opens an audio file.
"""
