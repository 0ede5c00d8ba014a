"""Verification of keys, and what follows a valid one: last use, first use, rehash."""
