"""Tumbler: a self-hosted gRPC service that issues and verifies API keys."""

import os

# gRPC's core logs each header that it cannot read, as fast as anybody sends them, from the threads that read for all:
# 60,000 lines a second, and a server that stands still where its log is not read. What matters of that we log.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
