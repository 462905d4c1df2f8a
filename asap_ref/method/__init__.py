"""The paper, an idea per file, forward beside backward; read it in this order.

ASAP is "Amortized Doubly-Stochastic Attention via Sliced Dual Projection" (Tran, Milkert & Hyde, arXiv 2605.12879).
Softmax attention makes the rows of its plan sum to 1. Doubly-stochastic attention balances the columns too, by
Sinkhorn's algorithm: T iterations, each two passes over an n x m matrix. ASAP predicts one of the two dual vectors from
transport problems on lines, which a sort solves, and gets the other, and the plan, from it by a single iteration.

    transport    S = q kᵀ / sqrt(d), duals f and g, the plan P = exp((f + g + S) / epsilon), half steps
    sinkhorn     the loop that makes P doubly stochastic: the *teacher*, T iterations
    potentials   on the line transport is a sort, which gives the dual exactly
    slices       queries and keys projected on lines: a potential phi per line
    features     Phi: the slice potentials, and whatever else may tell of the dual
    amortizer    f_hat = Phiᵀ w, the prediction that takes the place of the loop
    regression   w, from the duals of the teacher
    attention    out = P v: softmax, Sinkhorn, and ASAP, where g and f follow from f_hat by two half steps

Every operator ``name`` has ``name_vjp(same arguments) -> (value, vjp)`` beside it, its vector-Jacobian product: ``vjp``
takes the gradient of some loss with respect to the value (``d_value``, or dq, df, dS for single letters) to those with
respect to the arguments. An annotation such as "... n m" is a shape, which the decorators check.

Whose step is whose: *(paper)* follows from what is public of the paper, its abstract and summaries; somebody else's is
cited; *(ours)* is neither: chosen or derived here, as the hand-written gradients are. "Oracle" is the test vectors for
other implementations, with their own account of the mathematics (asap_ref/oracle/README.md).

Helpers, which are what their names say; masks are True at tokens, False at padding:

    array_namespace(x)          the array module of x: all functions are taken from it
    keep(x, mask)               x (..., n), zero at padding;  keep_tokens: x (..., n, d);  without_padding: q, k and v
    centred(x, mask)            x (..., n) less its mean over tokens
    valid_pairs                 (..., n, m): query and key are both tokens
    queries_with_a_key          (..., n): query masks where there is a key as well: the others have the dual 0
    column_mass                 n'/m', what a column sums to: a number without masks, (..., 1) with them, never 0
    of_features(mask)           (..., n) -> (..., 1, n)
    matvec(K, b), vecmat(a, K)  K b and Kᵀ a, leading axes alongside
"""
