"""Webhooks: choosing, signing and safely sending messages, with retries, and recording the outcomes."""
