"""Scenarios that the verifiers of all languages must pass. They check docs/clients.md."""
