"""Tumbler: a self-hosted gRPC service that issues and verifies API keys."""
