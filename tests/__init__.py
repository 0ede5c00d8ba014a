"""The tests. Processes that they start as another user are forked, and gRPC's fork handlers can break a fork.

So gRPC's fork support is turned off, before gRPC is loaded.
"""

import os

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
