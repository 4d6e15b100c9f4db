// Rows of a matrix product in the format of the matrix (types.h).

// A row is encoded once for each matrix product that reads it.
struct EncodedRows {
    char *data;
    int64_t stride;  // Bytes.
    float *scale;    // int8: what one unit of a row is worth, [rows]
};

constexpr int64_t kLine = 64;  // Bytes of a cache line.
#ifdef DIJIANG_TILES
constexpr int64_t kRowMultiple = 16;  // Products read so many rows at once, whatever is in them.
#else
constexpr int64_t kRowMultiple = 1;
#endif

// What was written of a row ends in the middle of a line: the rest of that is read, too.
static inline void clear_rest_of_line(char *row, int64_t written) {
    if (written % kLine) std::memset(row + written, 0, kLine - written % kLine);
}

static inline Vec bias_of(const Matrix &m, int64_t column) {
    return m.bias != nullptr ? load(m.bias + column) : broadcast(0.0f);
}

// What makes sums the outputs of 16 columns, from the given one on.
struct FloatColumns {
    Vec bias;

    FloatColumns(const Matrix &m, int64_t column) : bias(bias_of(m, column)) {}
    Vec finish(Vec sums, float) const { return add(sums, bias); }
};

struct Int8Columns {
    Sum offset;
    Vec scale, bias;

    Int8Columns(const Matrix &m, int64_t column)
        : offset(load_offset(m.column_sum + column)),
          scale(load(m.scale + column)),
          bias(bias_of(m, column)) {}
    Vec finish(Sum sums, float row_scale) const {
        return add(mul(to_floats(subtract(sums, offset)), mul(broadcast(row_scale), scale)), bias);
    }
};

struct Float32Format {
    static constexpr int64_t kBytes = 4;
    using Total = Vec;
    static Total zero() { return broadcast(0.0f); }
    static Total dot(Total t, Word x, Word w) { return fma(as_floats(x), as_floats(w), t); }
    using Columns = FloatColumns;

    static void encode(const float *x, int64_t n, const EncodedRows &to, int64_t row) {
        float *out = reinterpret_cast<float *>(to.data + row * to.stride);
        for_lanes(n, [&](int64_t i, int64_t count) { store(out + i, load_some(x + i, count)); });
    }
};

struct BFloat16Format {
    static constexpr int64_t kBytes = 2;
    using Total = Vec;
    static Total zero() { return broadcast(0.0f); }
    static Total dot(Total t, Word x, Word w) { return dot_bf16(t, x, w); }
    using Columns = FloatColumns;

    static void encode(const float *x, int64_t n, const EncodedRows &to, int64_t row) {
        char *out = to.data + row * to.stride;
        for_lanes(n, [&](int64_t i, int64_t count) {
            store_bf16(out + 2 * i, load_some(x + i, count));
        });
        clear_rest_of_line(out, 2 * whole_vectors(n));
    }
};

struct Int8Format {
    static constexpr int64_t kBytes = 1;
    using Total = Sum;
    static Total zero() { return zero_sum(); }
    static Total dot(Total t, Word x, Word w) { return dot_int8(t, x, w); }
    using Columns = Int8Columns;

    static constexpr float kNothing = 1e-30f;  // Its reciprocal does not overflow.

    // Symmetric: the largest magnitude of the row becomes 127.
    static void encode(const float *x, int64_t n, const EncodedRows &to, int64_t row) {
        Vec largest = broadcast(0.0f), spoilt = broadcast(0.0f);  // NaN once a number is not finite.
        for_lanes(n, [&](int64_t i, int64_t count) {
            const Vec some = load_some(x + i, count);
            largest = max(abs(some), largest);
            spoilt = fma(some, broadcast(0.0f), spoilt);
        });
        const float top = largest_lane(largest);
        const bool is_finite = sum_lanes(spoilt) == 0.0f;
        const Vec inverse = broadcast(top > kNothing ? 127.0f / top : 0.0f);
        const Vec bound = broadcast(127.0f);
        char *out = to.data + row * to.stride;
        for_lanes(n, [&](int64_t i, int64_t count) {
            const Vec unit = nearest(mul(load_some(x + i, count), inverse));
            store_int8(out + i, max(broadcast(-127.0f), min(bound, unit)));
        });
        clear_rest_of_line(out, whole_vectors(n));
        to.scale[row] = is_finite ? top / 127.0f : std::numeric_limits<float>::quiet_NaN();
    }
};

// Call f with the format's type.
template <class Function>
static inline void with_format(int64_t format, Function f) {
    switch (format) {
        case kInt8: return f(Int8Format{});
        case kBFloat16: return f(BFloat16Format{});
        default: return f(Float32Format{});
    }
}

// Memory for rows of n numbers. An odd number of lines from one to the next, so that the rows of a
// tile do not meet in a few places of a small cache.
static EncodedRows take_rows(Arena &arena, int64_t rows, int64_t n, int64_t format) {
    EncodedRows taken{};
    with_format(format, [&](auto chosen) {
        const int64_t lines = (whole_vectors(n) * decltype(chosen)::kBytes + kLine - 1) / kLine;
        taken.stride = (lines | 1) * kLine;
    });
    rows = (rows + kRowMultiple - 1) / kRowMultiple * kRowMultiple;
    taken.data = arena.take<char>(rows * taken.stride);
    taken.scale = arena.take<float>(rows);
    return taken;
}
