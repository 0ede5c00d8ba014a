"""Attackers against a real server, with honest callers beside them, and a table of what it did: ``make siege``."""
