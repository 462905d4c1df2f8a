"""The paper: masks, transport, sinkhorn, potentials, slices, features, regression, amortizer, attention, in this order.

Every operator f stands beside ``f_vjp(same arguments) -> (value, vjp)``, its vector-Jacobian product: ``vjp`` takes
the gradient of some loss by the value (``d_value``, or df, dg, dS for single letters) to the gradients by the
arguments. A *teacher* is attention by `sinkhorn`; what takes its place is compiled from it. staircase.py, the
potentials of samples of unequal sizes or weights, and relaxation.py, which is ours, may be skipped at first.
"""
