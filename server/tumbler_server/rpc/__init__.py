"""gRPC: turns requests into calls to the domain, and results into messages. Holds no business state and no SQL."""
