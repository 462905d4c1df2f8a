"""The paper, in this order: masks, transport, sinkhorn, potentials, slices, features, amortizer, attention."""
