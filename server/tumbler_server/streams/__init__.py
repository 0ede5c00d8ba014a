"""The Watch streams: which stream gets which events, and when."""
