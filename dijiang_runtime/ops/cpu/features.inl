// Rotation and feature map of queries and keys, for some tokens of one head.

// Products of small row-major matrices: C = A B, or C += A B. B has whole vectors of columns.
// Each output is one chain of sums over k, so its bits do not depend on the shape of the rest.
struct Strided {
    const float *data;
    int64_t row, column;  // Strides: element (i, k) is data[i * row + k * column].
};

template <int Rows, int Vectors>
static inline void small_tile(const Strided &a, const float *b, int64_t ldb, int64_t depth, float *c,
                              int64_t ldc, bool accumulate) {
    Vec total[Rows][Vectors];
    for (int r = 0; r < Rows; ++r) {
        for (int v = 0; v < Vectors; ++v) {
            total[r][v] = accumulate ? load(c + r * ldc + v * kLanes) : broadcast(0.0f);
        }
    }
    for (int64_t k = 0; k < depth; ++k) {
        Vec row[Vectors];
        for (int v = 0; v < Vectors; ++v) row[v] = load(b + k * ldb + v * kLanes);
        for (int r = 0; r < Rows; ++r) {
            const Vec x = broadcast(a.data[r * a.row + k * a.column]);
            for (int v = 0; v < Vectors; ++v) total[r][v] = fma(x, row[v], total[r][v]);
        }
    }
    for (int r = 0; r < Rows; ++r) {
        for (int v = 0; v < Vectors; ++v) store(c + r * ldc + v * kLanes, total[r][v]);
    }
}

template <int Vectors>
static void small_rows(Strided a, int64_t rows, const float *b, int64_t ldb, int64_t depth, float *c,
                       int64_t ldc, bool accumulate) {
    constexpr int block = kMaxRows < 4 ? kMaxRows : 4;
    int64_t r = 0;
    for (; r + block <= rows; r += block, a.data += block * a.row, c += block * ldc) {
        small_tile<block, Vectors>(a, b, ldb, depth, c, ldc, accumulate);
    }
    for (; r < rows; ++r, a.data += a.row, c += ldc) {
        small_tile<1, Vectors>(a, b, ldb, depth, c, ldc, accumulate);
    }
}

static void small_product(const Strided &a, int64_t rows, const float *b, int64_t ldb, int64_t depth,
                          float *c, int64_t ldc, int64_t columns, bool accumulate = false) {
    int64_t j = 0;
    constexpr int64_t wide = kTileVectors * kLanes;
    for (; j + wide <= columns; j += wide) {
        small_rows<kTileVectors>(a, rows, b + j, ldb, depth, c + j, ldc, accumulate);
    }
    for (; j < columns; j += kLanes) small_rows<1>(a, rows, b + j, ldb, depth, c + j, ldc, accumulate);
}

// Cosine and sine of each pair of dimensions at a position: [rotary_dim / 2] each.
static void rotary_angles(const Decoder &d, int64_t position, float *cosine, float *sine) {
    for (int64_t i = 0; i < d.rotary_dim / 2; ++i) {
        // In float64: in float32 the angle would be off by 0.01 at position 100,000.
        const double angle = static_cast<double>(position) * d.rotary_frequencies[i];
        cosine[i] = static_cast<float>(std::cos(angle));
        sine[i] = static_cast<float>(std::sin(angle));
    }
}

// Rotate the leading dimensions of one head, in place. `angles` is [2, rotary_dim / 2].
static inline void rotate(const Decoder &d, const float *angles, float *head) {
    const int64_t half = d.rotary_dim / 2;
    for_lanes(half, [&](int64_t i, int64_t count) {
        const Vec cosine = load_some(angles + i, count), sine = load_some(angles + half + i, count);
        const Vec first = load_some(head + i, count), second = load_some(head + half + i, count);
        store_some(head + i, count, sub(mul(first, cosine), mul(second, sine)));
        store_some(head + half + i, count, fma(second, cosine, mul(first, sine)));
    });
}

// softmax(sign x) of n numbers.
static inline void softmax(const float *x, int64_t n, float sign, float *out) {
    const Vec s = broadcast(sign);
    Vec largest = broadcast(-3.0e38f);
    for_lanes(n, [&](int64_t i, int64_t count) {
        largest = max(mul(s, load_some(x + i, count, -3.0e38f * sign)), largest);
    });
    const Vec top = broadcast(largest_lane(largest));
    Vec total = broadcast(0.0f);
    for_lanes(n, [&](int64_t i, int64_t count) {
        const Vec e = exponential(sub(mul(s, load_some(x + i, count)), top));
        store_some(out + i, count, e);
        total = add(total, load_some(out + i, count));
    });
    const Vec whole = broadcast(sum_lanes(total));
    for_lanes(n, [&](int64_t i, int64_t count) {
        store_some(out + i, count, div(load_some(out + i, count), whole));
    });
}

// Features [rows, num_features], `out_stride` apart, of heads [rows, head_dim] that are `stride`
// apart. `scratch` holds [rows, padded projection columns].
static void features(const Decoder &d, const float *projection, const float *head, int64_t stride,
                     int64_t rows, float *scratch, float *out, int64_t out_stride) {
    const int64_t columns = d.projection_columns;
    const int64_t padded = (columns + kLanes - 1) / kLanes * kLanes;
    small_product({head, stride, 1}, rows, projection, padded, d.head_dim, scratch, padded, padded);
    for (int64_t r = 0; r < rows; ++r) {
        softmax(scratch + r * padded, columns, 1.0f, out + r * out_stride);
        if (d.negated_half) {
            softmax(scratch + r * padded, columns, -1.0f, out + r * out_stride + columns);
        }
    }
}
