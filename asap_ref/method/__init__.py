"""The paper: masks, transport, sinkhorn, potentials, slices, features, regression, amortizer, relaxation, attention."""
