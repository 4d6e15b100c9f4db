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

static inline bool has_nan(const float *x, int64_t n) {
    uint32_t numbers = (1u << kLanes) - 1u;
    for_lanes(n, [&](int64_t i, int64_t count) {
        const Vec some = load_some(x + i, count);
        numbers &= reaching(some, some);
    });
    return numbers != (1u << kLanes) - 1u;
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

// 2^x for x of 0 at most, with an error of 2e-7; 1 for 0, and 0 from 2^-126 on down. Smaller numbers are
// not made on the way: those that are not normal take the processor a hundred times as long.
static inline Vec power_of_two(Vec x) {
    constexpr float least = std::numeric_limits<float>::min();
    x = max(broadcast(-126.0f), x);
    const Vec n = nearest(x), r = sub(x, n);
    // The polynomial of degree 5 with the smallest relative error for |r| of 1/2 at most, and p(0) = 1.
    Vec p = broadcast(1.3264727e-3f);
    for (const float c : {9.671513e-3f, 5.5507336e-2f, 2.4022242e-1f, 6.931470e-1f, 1.0f}) {
        p = fma(p, r, broadcast(c));
    }
    return max(broadcast(0.0f), sub(scale_by_power(p, n), broadcast(least)));
}

// e^((x - largest) / temperature), and 0 where that is below about e^-87.
class Weights {
public:
    Weights(float largest, float temperature)
        : largest_(broadcast(largest)), per_logit_(broadcast(1.44269504f / temperature)) {}

    Vec of(Vec x) const { return power_of_two(mul(sub(x, largest_), per_logit_)); }

private:
    const Vec largest_, per_logit_;
};

// The largest of n numbers; -infinity if there are none.
static inline float largest_of(const float *x, int64_t n) {
    Vec largest = broadcast(kNone);
    for_lanes(n, [&](int64_t i, int64_t count) {
        largest = max(load_some(x + i, count, kNone), largest);
    });
    return largest_lane(largest);
}

static inline int64_t lowest_bit(uint32_t bits) {
#if defined(__GNUC__)
    return __builtin_ctz(bits);
#else
    int64_t place = 0;
    while (!(bits >> place & 1u)) ++place;
    return place;
#endif
}

// The place of the first of n numbers that reaches `least`, or the last place where none does.
static inline int64_t first_reaching(const float *x, int64_t n, float least) {
    for (int64_t i = 0; i < n; i += kLanes) {
        const Vec some = load_some(x + i, std::min(n - i, kLanes), kNone);
        const uint32_t found = reaching(some, broadcast(least));
        if (found != 0) return std::min(i + lowest_bit(found), n - 1);
    }
    return n - 1;
}
