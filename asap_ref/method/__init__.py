"""The paper, an idea per file, forward beside backward; read it in this order.

ASAP is "Amortized Doubly-Stochastic Attention via Sliced Dual Projection" (Tran, Milkert & Hyde, arXiv 2605.12879).
Softmax attention makes the rows of its weights, the *plan*, sum to 1. Doubly-stochastic attention balances the columns
too, by Sinkhorn's T iterations, each two passes over an n x m matrix. ASAP predicts one of two dual vectors, that of
the queries (paper), from transport on lines, which a sort solves; a single iteration gives the other, and the plan.

    transport    S = q kᵀ / sqrt(d), duals f and g, P = exp((f + g + S) / epsilon), half steps: one dual from the other
    sinkhorn     the loop that makes P doubly stochastic: the *teacher*, T iterations
    potentials   on the line transport without entropy is a sort, which gives its dual, a *potential*, exactly
    slices       queries and keys projected on lines: a potential phi per line
    features     Phi: the slice potentials, and whatever else may tell of the dual
    amortizer    f_hat = Phiᵀ w, a prediction of f up to a constant, in place of the loop
    regression   w, from the duals of the teacher
    attention    out = P v: softmax, Sinkhorn, and ASAP, where g and f follow from f_hat by two half steps

Every ``name`` that is an ``@operator`` has ``name_vjp(same arguments) -> (value, vjp)`` beside it, its vector-Jacobian
product: ``vjp`` takes a loss's gradient in the value (``d_value``, or dq, df, dS for single letters) to those in the
array arguments, unless it says otherwise. An annotation such as "... n m" is a shape, which the decorators check.

Whose step is whose: *(paper)* follows from what is public of the paper, its abstract and summaries; somebody else's is
cited; *(ours)* was chosen or derived here, as the hand-written gradients were. "Oracle" is the test vectors for
other implementations, with their own account of the mathematics (asap_ref/oracle/README.md).

Helpers. Masks are True at tokens, False at padding, None where nothing is padding; (..., 1, n) serves all heads:

    array_namespace(x)          the array module of x: all functions are taken from it
    keep(x, mask)               x (..., n), zero at padding;  keep_tokens: x (..., n, d);  without_padding: q, k and v
    centred(x, mask)            x (..., n) less its mean over tokens, zero at padding
    valid_pairs(masks)          (..., n, m): query and key are both tokens
    queries_with_a_key(masks)   (..., n): the query mask, False too where a sequence has no key: there the dual is 0
    column_mass                 n'/m', what a column sums to: a number without masks, (..., 1) with them, never 0
    of_features(mask)           (..., n) -> (..., 1, n)
    matvec(K, b), vecmat(a, K)  K b and Kᵀ a, leading axes alongside
"""
