// Tiles of a matrix unit as AMX has them. What each function means: tiles_portable.h. The compiler's
// own functions take nothing but digits for a tile, and so no parameter of a template.

struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

static const TileShapes kTileShapes;

// Whoever switches threads saves the tiles that are in use.
struct TilesInUse {
    TilesInUse() { _tile_loadconfig(&kTileShapes); }
    ~TilesInUse() { _tile_release(); }
};

template <int Tile>
static inline void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}

// It does not say that it reads memory, so that values stay in registers around it: whoever has just
// written what is loaded tells the compiler.
template <int Tile>
static inline void tile_load(const void *from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile));
}

template <int Tile>
static inline void tile_store(void *to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
}

template <int Sums, int X, int Weight>
static inline void tile_dot_int8() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(X), "i"(Weight));
}

template <int Sums, int X, int Weight>
static inline void tile_dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(X), "i"(Weight));
}
