"""The weights of an amortizer from data: here, or on the workers of a cluster."""
