// The same in the processor's matrix unit (AMX), for int8 and bfloat16.
//
// A tile has 16 rows of 64 bytes. Of the input those are rows; of a panel they are groups of inputs
// for 16 columns, which is how it is stored; of the product, rows of 16 columns. Rows beyond the last
// are computed from whatever lies there and left out. int8 sums are exact, so they are those of any
// other target; bfloat16 sums have an order of their own, in which every number of rows is added.

constexpr int64_t kGroupBytes = 4 * kPanelColumns;   // Of one group of a panel.
constexpr int64_t kStepGroups = 16;                  // Groups of a panel that are multiplied at once,
constexpr int64_t kStepBytes = kStepGroups * kGroupBytes;  // their bytes,
constexpr int64_t kStepInput = 4 * kStepGroups;            // and those of a row.
constexpr int64_t kStepsAhead = 2;

struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

static const TileShapes kTileShapes;

// Has the tiles of this thread as long as it lives; whoever switches threads then saves them, too.
struct TilesInUse {
    TilesInUse() { _tile_loadconfig(&kTileShapes); }
    ~TilesInUse() { _tile_release(); }
};

// What a panel is multiplied with. The last step of a panel may have fewer groups: then it is read
// from a copy that is filled up with zeros.
struct PanelSteps {
    const char *panel, *last;
    int64_t count;

    const char *at(int64_t step) const { return step + 1 < count ? panel + step * kStepBytes : last; }
};

// Where some rows of a product are put together: all columns of a panel, [rows][64].
struct alignas(64) PanelSums {
    int32_t sums[2 * kRowMultiple][kPanelColumns];
};

// The macros of a tile's instructions take nothing but digits.
#define DIJIANG_TILE_DOT(sums, x, weight)                       \
    do {                                                        \
        if constexpr (std::is_same_v<Format, Int8Format>) {     \
            _tile_dpbusd(sums, x, weight);                      \
        } else {                                                \
            _tile_dpbf16ps(sums, x, weight);                    \
        }                                                       \
    } while (false)

// Lines of memory that are fetched into the cache in each step, from `next` on.
struct TilesAhead {
    const char *next;
    int64_t lines;

    void fetch() {
        for (int64_t i = 0; i < lines; ++i, next += kLine) prefetch(next);
    }
};

// 16 rows and all columns of a panel.
template <class Format>
static inline void multiply_16(const PanelSteps &w, const EncodedRows &x, int64_t row,
                               TilesAhead ahead, PanelSums &out) {
    const char *input = x.data + row * x.stride;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 0; step < w.count; ++step, input += kStepInput) {
        const char *weight = w.at(step);
        ahead.fetch();
        _tile_loadd(4, input, x.stride);
        _tile_loadd(5, weight, kGroupBytes);
        DIJIANG_TILE_DOT(0, 4, 5);
        _tile_loadd(6, weight + kLine, kGroupBytes);
        DIJIANG_TILE_DOT(1, 4, 6);
        _tile_loadd(7, weight + 2 * kLine, kGroupBytes);
        DIJIANG_TILE_DOT(2, 4, 7);
        _tile_loadd(5, weight + 3 * kLine, kGroupBytes);
        DIJIANG_TILE_DOT(3, 4, 5);
    }
    _tile_stored(0, &out.sums[0][0], kGroupBytes);
    _tile_stored(1, &out.sums[0][kLanes], kGroupBytes);
    _tile_stored(2, &out.sums[0][2 * kLanes], kGroupBytes);
    _tile_stored(3, &out.sums[0][3 * kLanes], kGroupBytes);
}

// 32 rows and the half of a panel's columns that begins with the given one.
template <class Format>
static inline void multiply_32(const PanelSteps &w, int64_t column, const EncodedRows &x, int64_t row,
                               TilesAhead ahead, PanelSums &out) {
    const char *first = x.data + row * x.stride, *second = first + kRowMultiple * x.stride;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 0; step < w.count; ++step, first += kStepInput, second += kStepInput) {
        const char *weight = w.at(step) + 4 * column;
        ahead.fetch();
        _tile_loadd(4, first, x.stride);
        _tile_loadd(6, weight, kGroupBytes);
        DIJIANG_TILE_DOT(0, 4, 6);
        _tile_loadd(7, weight + kLine, kGroupBytes);
        DIJIANG_TILE_DOT(1, 4, 7);
        _tile_loadd(5, second, x.stride);
        DIJIANG_TILE_DOT(2, 5, 6);
        DIJIANG_TILE_DOT(3, 5, 7);
    }
    _tile_stored(0, &out.sums[0][column], kGroupBytes);
    _tile_stored(1, &out.sums[0][column + kLanes], kGroupBytes);
    _tile_stored(2, &out.sums[kRowMultiple][column], kGroupBytes);
    _tile_stored(3, &out.sums[kRowMultiple][column + kLanes], kGroupBytes);
}

#undef DIJIANG_TILE_DOT

template <class Format>
static inline void finish_rows(const PanelSums &from, const Matrix &m, int64_t column,
                               const float *scale, int64_t row, int64_t rows, const Output &out) {
    for (int64_t v = 0; v < kPanelVectors; ++v) {
        const int64_t first = column + kLanes * v;
        if (m.columns <= first) return;
        const Vec bias = m.bias != nullptr ? load(m.bias + first) : broadcast(0.0f);
        for (int64_t r = 0; r < rows; ++r) {
            typename Format::Total total;
            std::memcpy(&total, &from.sums[r][kLanes * v], sizeof total);
            store_output(add(Format::finish(total, scale + row + r, m, first), bias), out, row + r,
                         first, m.columns);
        }
    }
}

template <class Format>
static void multiply_panel_in_tiles(const Matrix &m, int64_t index, const EncodedRows &x, int64_t rows,
                                    const Output &out) {
    const TilesInUse in_use;
    const int64_t panel_bytes = m.groups * kGroupBytes, column = index * kPanelColumns;
    const char *panel = static_cast<const char *>(m.panels) + index * panel_bytes;
    alignas(64) char last[kStepBytes];
    PanelSteps w{panel, nullptr, (m.groups + kStepGroups - 1) / kStepGroups};
    w.last = panel + (w.count - 1) * kStepBytes;
    if (const int64_t rest = m.groups % kStepGroups) {
        std::memcpy(last, w.last, rest * kGroupBytes);
        std::memset(last + rest * kGroupBytes, 0, (kStepGroups - rest) * kGroupBytes);
        w.last = last;
    }
    PanelSums sums;
    const int64_t blocks = (rows + 2 * kRowMultiple - 1) / (2 * kRowMultiple);
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t row = b * 2 * kRowMultiple;
        const int64_t count = std::min(rows - row, 2 * kRowMultiple);
        TilesAhead ahead{panel + kStepsAhead * kStepBytes, kStepBytes / kLine};
        if (blocks > 1) {
            ahead.lines = (kStepBytes / kLine + blocks - 1) / blocks;
            ahead.next = panel + panel_bytes + b * ahead.lines * kLine * w.count;
        }
        if (count <= kRowMultiple) {
            multiply_16<Format>(w, x, row, ahead, sums);
        } else {
            multiply_32<Format>(w, 0, x, row, ahead, sums);
            multiply_32<Format>(w, kPanelColumns / 2, x, row, {nullptr, 0}, sums);
        }
        finish_rows<Format>(sums, m, column, x.scale, row, count, out);
    }
}

template <>
void multiply_panel<BFloat16Format>(const Matrix &m, int64_t index, const EncodedRows &x, int64_t rows,
                                    const Output &out) {
    multiply_panel_in_tiles<BFloat16Format>(m, index, x, rows, out);
}

template <>
void multiply_panel<Int8Format>(const Matrix &m, int64_t index, const EncodedRows &x, int64_t rows,
                                const Output &out) {
    multiply_panel_in_tiles<Int8Format>(m, index, x, rows, out);
}
