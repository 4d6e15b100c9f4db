// Elementary functions and sums over a row, built on the vectors of the target.

constexpr float kNone = -std::numeric_limits<float>::infinity();  // Smaller than any number.

static inline int64_t whole_vectors(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Call f(i, count) for each run of at most 16 of n numbers.
template <class Function>
static inline void for_lanes(int64_t n, Function f) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) f(i, kLanes);
    if (i < n) f(i, n - i);
}

static inline Vec load_some(const float *p, int64_t count, float rest = 0.0f) {
    return count == kLanes ? load(p) : load_first(p, count, rest);
}

static inline void store_some(float *p, int64_t count, Vec v) {
    count == kLanes ? store(p, v) : store_first(p, count, v);
}

static inline bool is_finite(const float *x, int64_t n) {
    Vec spoilt = broadcast(0.0f);  // NaN once a number is not finite.
    for_lanes(n, [&](int64_t i, int64_t count) {
        spoilt = fma(load_some(x + i, count), broadcast(0.0f), spoilt);
    });
    return sum_lanes(spoilt) == 0.0f;
}

// e^x with an error of about one unit in the last place; 0 and infinity are never reached.
static inline Vec exponential(Vec x) {
    // The bound comes first: of a pair with NaN, `min` and `max` give the second.
    x = max(broadcast(-87.0f), min(broadcast(88.0f), x));
    const Vec n = nearest(mul(x, broadcast(1.44269504f)));
    // ln 2 in two parts, the first of few bits.
    Vec r = fma(n, broadcast(-0.693359375f), x);
    r = fma(n, broadcast(2.12194440e-4f), r);
    // Taylor's series: |r| is at most ln 2 / 2, where the next term is below 1e-8.
    Vec p = broadcast(1.0f / 5040);
    for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
        p = fma(p, r, broadcast(c));
    }
    return scale_by_power(p, n);
}

static inline Vec silu(Vec x) {
    return div(x, add(broadcast(1.0f), exponential(sub(broadcast(0.0f), x))));
}

// x Φ(x). The normal distribution's tail by Abramowitz and Stegun, formula 7.1.26.
static inline Vec gelu(Vec x) {
    const Vec one = broadcast(1.0f), z = mul(abs(x), broadcast(0.70710678f));
    const Vec t = div(one, fma(z, broadcast(0.3275911f), one));
    Vec p = broadcast(1.061405429f);
    for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) {
        p = fma(p, t, broadcast(c));
    }
    const Vec square = mul(z, sub(broadcast(0.0f), z));
    const Vec tail = mul(mul(broadcast(0.5f), mul(p, t)), exponential(square));  // Φ(-|x|)
    // x Φ(x) = max(x, 0) - |x| Φ(-|x|)
    return sub(max(broadcast(0.0f), x), mul(abs(x), tail));
}

static inline Vec gelu_tanh(Vec x) {
    const Vec cube = mul(mul(x, x), x);
    const Vec inner = mul(broadcast(1.59576912f), fma(broadcast(0.044715f), cube, x));
    // 0.5 (1 + tanh(u)) = 1 / (1 + e^(-2u))
    return div(x, add(broadcast(1.0f), exponential(sub(broadcast(0.0f), inner))));
}

static inline Vec activate(Vec x, int64_t activation) {
    switch (activation) {
        case kGelu: return gelu(x);
        case kGeluTanh: return gelu_tanh(x);
        case kRelu: return max(broadcast(0.0f), x);
        default: return silu(x);
    }
}

// What masked logits weigh before it is taken off: `exponential` goes no lower.
static inline Vec least_exponential() { return exponential(broadcast(-87.0f)); }

// e^((x - largest) / temperature), and 0 where that is below e^-87.
class Weights {
public:
    Weights(float largest, float temperature, Vec least)
        : largest_(broadcast(largest)), inverse_(broadcast(1.0f / temperature)), least_(least) {}

    Vec of(Vec x) const {
        return max(broadcast(0.0f), sub(exponential(mul(sub(x, largest_), inverse_)), least_));
    }

private:
    const Vec largest_, inverse_, least_;
};
