"""gRPC: what comes in becomes a call to the domain, what the domain says goes out. No business state, no SQL."""
