// Tiles in plain C++: the meaning of what tiles_amx.h does with instructions, and how they are tested
// where there are none. A tile is 16 rows of 64 bytes; there are eight.

static thread_local char tiles[8][16][64];

// Has the tiles of this thread as long as it lives.
struct TilesInUse {
    ~TilesInUse() {}
};

template <int Tile>
static inline void tile_zero() {
    std::memset(tiles[Tile], 0, sizeof tiles[Tile]);
}

// Rows that are `stride` bytes apart.
template <int Tile>
static inline void tile_load(const void *from, int64_t stride) {
    for (int64_t r = 0; r < 16; ++r) {
        std::memcpy(tiles[Tile][r], static_cast<const char *>(from) + r * stride, 64);
    }
}

template <int Tile>
static inline void tile_store(void *to, int64_t stride) {
    for (int64_t r = 0; r < 16; ++r) {
        std::memcpy(static_cast<char *>(to) + r * stride, tiles[Tile][r], 64);
    }
}

// sums[r][c] += sum over k and e of x[r][k][e] weight[k][c][e], with 16 k and as many e as fill 32 bits.
template <class Number, int Sums, int X, int Weight, class Widened>
static inline void tile_dot_plainly(Widened widened) {
    constexpr int64_t elements = 4 / sizeof(Number);
    for (int64_t r = 0; r < 16; ++r) {
        Number x[16 * elements];
        decltype(widened(Number{})) sums[16];
        std::memcpy(x, tiles[X][r], 64);
        std::memcpy(sums, tiles[Sums][r], 64);
        for (int64_t k = 0; k < 16; ++k) {
            Number weight[16 * elements];
            std::memcpy(weight, tiles[Weight][k], 64);
            for (int64_t c = 0; c < 16; ++c) {
                for (int64_t e = 0; e < elements; ++e) {
                    sums[c] += widened(x[k * elements + e]) * widened(weight[c * elements + e]);
                }
            }
        }
        std::memcpy(tiles[Sums][r], sums, 64);
    }
}

template <int Sums, int X, int Weight>
static inline void tile_dot_int8() {
    tile_dot_plainly<int8_t, Sums, X, Weight>([](int8_t x) { return static_cast<int32_t>(x); });
}

template <int Sums, int X, int Weight>
static inline void tile_dot_bf16() {
    tile_dot_plainly<uint16_t, Sums, X, Weight>([](uint16_t bits) {
        const uint32_t wide = static_cast<uint32_t>(bits) << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        return value;
    });
}
