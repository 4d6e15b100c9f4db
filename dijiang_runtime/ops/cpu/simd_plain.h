// What needs no instructions of its own where there are no vectors of 16.

// to[c][r] = from[r][c] for up to 16 rows and columns; rows that are missing are 0.
static inline void transpose_block(const float *from, int64_t stride, int64_t rows, int64_t columns,
                                   float *to, int64_t to_stride) {
    for (int64_t c = 0; c < columns; ++c) {
        for (int64_t r = 0; r < 16; ++r) to[c * to_stride + r] = r < rows ? from[r * stride + c] : 0.0f;
    }
}
