"""Tumbler: a self-hosted gRPC service that issues and verifies API keys."""

import os

# gRPC's core logs every header that it cannot parse, as fast as clients send them, on the threads that read all
# connections: 60,000 lines a second, and the server stops if its log is not read. We log what matters of that.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
