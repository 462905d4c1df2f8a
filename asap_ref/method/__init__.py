"""The paper, an idea a file, forward beside backward; read it in this order.

    transport    S = q kᵀ / sqrt(d), duals f and g, the plan P = exp((f + g + S) / epsilon), half steps
    sinkhorn     the loop that makes P doubly stochastic: the *teacher*, T iterations
    potentials   on the line transport is a sort, which gives the dual exactly
    slices       queries and keys projected on lines: a potential phi a line
    features     Phi: the slice potentials, and whatever else may tell of the dual
    amortizer    f_hat = Phiᵀ w, the prediction that takes the place of the loop
    regression   w, from the duals of the teacher
    attention    out = P v: softmax, Sinkhorn, and ASAP, where g and f follow from f_hat by two half steps

Every operator f has ``f_vjp(same arguments) -> (value, vjp)`` beside it, its vector-Jacobian product: ``vjp`` takes the
gradient of some loss by the value (``d_value``, or df, dg, dS for single letters) to the gradients by the arguments.
"""
