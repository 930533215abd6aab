"""From a spoken query to a spoken reply, streamed and timed part by part."""
