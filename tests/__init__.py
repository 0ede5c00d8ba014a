"""The tests. What they start as another user is forked, and a fork does not always survive what gRPC does to it.

So gRPC is told, before it is loaded, to leave forks alone.
"""

import os

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
