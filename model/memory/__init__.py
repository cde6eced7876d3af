"""Memory: plans for a card, CPU offload, and the C allocator."""
