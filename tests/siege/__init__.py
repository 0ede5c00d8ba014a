"""Attacks on a real server, with honest callers at the same time, and a table of the results: ``make siege``."""
