"""The domain: keys' records, the rules about them, their changes, and reading them."""
