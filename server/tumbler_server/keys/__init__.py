"""The domain model: API keys, their lifecycle and their verification."""
