// Norms over one row. Sums run in one fixed order.

static inline float mean(const float *x, int64_t n) {
    Vec total = broadcast(0.0f);
    for_lanes(n, [&](int64_t i, int64_t count) { total = add(total, load_some(x + i, count)); });
    return sum_lanes(total) / static_cast<float>(n);
}

static inline float mean_square(const float *x, int64_t n, float centre) {
    Vec total = broadcast(0.0f);
    const Vec c = broadcast(centre);
    for_lanes(n, [&](int64_t i, int64_t count) {
        const Vec difference = sub(load_some(x + i, count, centre), c);
        total = fma(difference, difference, total);
    });
    return sum_lanes(total) / static_cast<float>(n);
}

// (x - centre) factor weight + bias; `out` may be x.
static inline void scale_row(const float *x, int64_t n, float centre, float factor,
                             const NormWeights &w, float *out) {
    for_lanes(n, [&](int64_t i, int64_t count) {
        const Vec unit = mul(sub(load_some(x + i, count), broadcast(centre)), broadcast(factor));
        const Vec bias = w.bias != nullptr ? load_some(w.bias + i, count) : broadcast(0.0f);
        store_some(out + i, count, fma(unit, load_some(w.weight + i, count), bias));
    });
}

static inline void normalise(const float *x, int64_t n, int64_t norm, double eps,
                             const NormWeights &w, float *out) {
    const float centre = norm == kLayerNorm ? mean(x, n) : 0.0f;
    const float square = mean_square(x, n, centre);
    scale_row(x, n, centre, 1.0f / std::sqrt(square + static_cast<float>(eps)), w, out);
}

// Group norm over runs of consecutive channels.
static inline void normalise_groups(const float *x, int64_t n, int64_t groups, double eps,
                                    const NormWeights &w, float *out) {
    const int64_t size = n / groups;
    for (int64_t start = 0; start < n; start += size) {
        const NormWeights part{w.weight + start, w.bias + start};
        normalise(x + start, size, kLayerNorm, eps, part, out + start);
    }
}
