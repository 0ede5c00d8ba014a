"""Webhooks: what is sent where, safely, again until it arrives, and what became of it."""
