"""The domain: what a key is, how its life goes, and whether it may pass."""
