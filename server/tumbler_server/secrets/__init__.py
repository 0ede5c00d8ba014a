"""What is secret or signed: keys' secrets, peppers, webhook secrets at rest, and the tokens that callers get."""
