"""One set of scenarios that the verifiers of all languages are held against; docs/clients.md is what they check."""
