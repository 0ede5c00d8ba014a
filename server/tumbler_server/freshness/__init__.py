"""How far this process has read the event log, and whether that is recent enough to answer from memory."""
