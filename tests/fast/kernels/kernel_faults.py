"""Faults that a kernel could have, each a change of the CUDA text: (file, what is wrong, old text, new text).

The old text occurs once, or is to be changed wherever it occurs. That each is noticed by the checks of battery.py is
tested by test_kernels_faults.py; removed barriers are in test_kernels_races.py.
"""

FAULTS = [
    # tiles and masks
    ("tile", "a mask is not looked at", "return i < count && (!mask || mask[i]);", "return i < count;"),
    ("tile", "the ends are not looked at", "return i < count && (!mask || mask[i]);", "return !mask || mask[i];"),
    ("tile", "problems have the wrong mask", "size_t(b / every % rows) * count", "size_t(b % rows) * count"),
    ("tile", "problems have the first one's tokens", "{x + size_t(b) * count * width,", "{x,"),
    ("tile", "padding is kept in tiles", "c < width && from.has(first + i)", "c < width && first + i < from.count"),
    ("tile", "columns past the width are read", "c < width && from.has", "from.has"),
    ("tile", "keys past the end weigh like others", "!of.has(first + j) ? -INF", "!of.has(first + j) ? REAL(0)"),
    ("tile", "tokens are counted without their mask", "sum += tokens.mask[i]", "sum += 1"),
    ("tile", "the last four columns are left out", "c < PITCH - 4; c += 4", "c < PITCH - 8; c += 4"),
    ("tile", "one product of four is left out", "s[i][j] += a[i].z * b[j].z;", ""),
    ("tile", "a row of values is taken twice", "four(&X[c + 3][column])", "four(&X[c + 2][column])"),
    ("tile", "wide values are not all written", "for (int g = 0; g < GROUPS; g++) {\n        const REAL x[4]", "for (int g = 0; g < 1; g++) {\n        const REAL x[4]"),
    ("tile", "only the first group of columns is summed", "const int column = 4 * (tx + TX * g);", "const int column = 4 * tx;"),
    # lse
    ("lse", "the last tile is dropped", "first < m; first += COLS", "first + COLS <= m; first += COLS"),
    ("lse", "the sum is not rescaled", "sum[i] * exp2(top[i] - base) + more", "sum[i] + more"),
    ("lse", "threads are joined without rescaling", "s.sum[i][t] * exp2(s.top[i][t] - base_of(high))", "s.sum[i][t]"),
    ("lse", "there is no running maximum", "high = larger(high, score[i][j]);", "high = REAL(0);"),
    ("lse", "epsilon does not divide the dual", "load_dual(s.dual, dual, b, first, LOG2E / epsilon)", "load_dual(s.dual, dual, b, first, LOG2E)"),
    ("lse", "the mass is forgotten", "(log_mass - (high", "(-(high"),
    ("lse", "duals of padding are not zero", "a.has(start + i) && (high", "(high"),
    ("lse", "the dual of another problem is read", "if (dual) dual += size_t(problem) * m;", ""),
    ("lse", "one thread's columns are left out of the sum", "for (int t = 0; t < TX; t++) total", "for (int t = 1; t < TX; t++) total"),
    ("lse", "a row of overflows is taken for one without tokens", " || b.any()", ""),
    # attend
    ("attend", "the last tile is dropped", "first < m; first += COLS", "first + COLS <= m; first += COLS"),
    ("attend", "the output is not rescaled", "o[i][g] = shrink * o[i][g];", ";"),
    ("attend", "the sum is not rescaled", "sum[i] * shrink + more", "sum[i] + more"),
    ("attend", "the maximum is that of a thread's own columns", "high = larger(high, s.row[ty + TY * i][t]);", ";"),
    ("attend", "the bias is left out", "score[i][j] += s.dual[tx + TX * j];", ";"),
    ("attend", "padded queries attend", "if (q.has(row) && some)", "if (some)"),
    ("attend", "a row of overflows is taken for one without keys", "some = some || k.any();", ""),
    ("attend", "what is not finite is not reported", "if (!fine && found)", "if (false)"),
    ("attend", "values are weighed by the mask of queries", "all_v, m, p, k_mask, k_every, k_rows", "all_v, m, p, nullptr, 1, 1"),
    # slices
    ("slices", "potentials are scattered in sorted order", "phi[x[i].index] =", "phi[i < n ? i : n - 1] ="),
    ("slices", "padding is sorted among the tokens", "tokens.has(token) ? value : INF", "value"),
    ("slices", "the sort runs one way", "const bool ascending = (low & span) == 0;", "const bool ascending = true;"),
    ("slices", "the key met before a level is the one after it", "y[(i * m_ - 1) / n_]", "y[i * m_ / n_]"),
    ("slices", "levels are those of all tokens", "const int n_ = count[0], m_ = count[1],", "const int n_ = n, m_ = m,"),
    ("slices", "a thread's own steps alone are summed", "t > 0 ? total[t - 1] : REAL(0)", "REAL(0)"),
    ("slices", "heads share their weights", "w[problem % heads * L + l]", "w[l]"),
    ("slices", "slices past the first tile are lost", "first < L; first += ROWS", "first < ROWS; first += ROWS"),
    ("slices", "keys are projected as queries of other problems", "place = is_query ? block : block - of_queries", "place = block % of_queries"),
    ("slices", "overflows are taken for padding", "value = s + s * 0;", "value = s;"),
    ("slices", "overflows are tokens like others", "const bool fine = x[0].value != -INF && y[0] != -INF;", "const bool fine = true;"),
    # moments and the dual
    ("moments", "tokens are not centred", "s.tokens[e / D][e % D] -= s.mean[e % D]", ";"),
    ("moments", "padding counts", "valid += tokens.has(start + i)", "valid += start + i < count"),
    ("moments", "tiles are joined as if their means were one", "part[0] * (part[1 + e / d] - mean[e / d]) * (part[1 + e % d] - mean[e % d])", "REAL(0)"),
    ("moments", "the last tile is left out", "tile < tiles; tile++) {\n            const", "tile < tiles - 1; tile++) {\n            const"),
    ("moments", "the form of all sequences is left out", "all_a[head] * cov_k[e] + A[e]", "all_a[head] * cov_k[e]"),
    ("moments", "queries' moments are those of keys", "mean_q, cov_q, of_q + size_t(problem) * tiles_q * step, tiles_q", "mean_q, cov_q, of_k + size_t(problem) * tiles_k * step, tiles_k"),
    ("moments", "diagonals are exchanged", "s[r + b] = Cw[b * r + b], s[2 * r + b] = Cu[b * r + b]", "s[r + b] = Cu[b * r + b], s[2 * r + b] = Cw[b * r + b]"),
    ("moments", "heads share a basis", "all_R + size_t(head) * d * r", "all_R"),
    ("dual", "the linear term is left out", "(score[i][j] + h[c])", "score[i][j]"),
    ("dual", "only a tile of the form is used", "first < d; first += COLS", "first < COLS; first += COLS"),
    ("dual", "a slice is left out", "for (int l = 0; l < L; l++)", "for (int l = 1; l < L; l++)"),
    ("dual", "an infinite dual stays one", "finite_or_nan(total)", "total"),
    # backwards
    ("gradient", "the last tile is dropped", "first < m; first += COLS", "first + COLS <= m; first += COLS"),
    ("gradient", "a half step is left out", "t = half_steps - 1; t >= 0; t--", "t = half_steps - 1; t > 0; t--"),
    ("gradient", "each half step has the last one's duals", "queries = t / 2, keys = (t + 1) / 2", "queries = half_steps / 2, keys = half_steps / 2"),
    ("gradient", "rows and columns are confused", "(t % 2 == 0) == (of_queries != 0)", "(t % 2 == 0) != (of_queries != 0)"),
    ("gradient", "the mass is forgotten", "over_mass * ((begin", "((begin"),
    ("gradient", "what came through the plan is forgotten", "(begin ? begin[start + i] : REAL(0))", "REAL(0)"),
    ("gradient", "the plan term counts in every half step", "(t == half_steps - 1 ? dP[i][j] : REAL(0))", "dP[i][j]"),
    ("gradient", "padding gets a gradient", "f[i] = there ?", "f[i] = row < n ?"),
]  # fmt: skip


def seeded(text, fault):
    """The text of a file with the fault in it."""
    _, what, old, new = fault
    if old not in text:
        raise ValueError(f"the text of {what!r} is not there: {old}")
    return text.replace(old, new)
