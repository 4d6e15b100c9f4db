// Vectors of 16 floats in plain C++: the meaning of what the other simd_*.h do with instructions.

#include "simd_plain.h"

struct Vec { float lane[16]; };
struct Word { uint32_t lane[16]; };  // 16 times 32 bits, read as the format of a matrix wants.
struct Sum { int32_t lane[16]; };    // Exact sums of int8 products.

constexpr int kMaxRows = 2;
constexpr int kTileVectors = 1;
constexpr int kInputOffset = 0;  // What int8 inputs are stored with, so that they are unsigned.

#define DIJIANG_LANES for (int i = 0; i < 16; ++i)

static inline Vec broadcast(float x) { Vec r; DIJIANG_LANES r.lane[i] = x; return r; }
static inline Vec load(const float *p) { Vec r; std::memcpy(&r, p, sizeof r); return r; }
static inline void store(float *p, Vec v) { std::memcpy(p, &v, sizeof v); }
static inline void stream(float *p, Vec v) { store(p, v); }
static inline void fence() {}
static inline void prefetch(const void *) {}
static inline Vec load_first(const float *p, int64_t n, float rest = 0.0f) {
    Vec r = broadcast(rest);
    std::memcpy(&r, p, sizeof(float) * n);
    return r;
}
static inline void store_first(float *p, int64_t n, Vec v) { std::memcpy(p, &v, sizeof(float) * n); }

static inline Vec add(Vec a, Vec b) { DIJIANG_LANES a.lane[i] += b.lane[i]; return a; }
static inline Vec sub(Vec a, Vec b) { DIJIANG_LANES a.lane[i] -= b.lane[i]; return a; }
static inline Vec mul(Vec a, Vec b) { DIJIANG_LANES a.lane[i] *= b.lane[i]; return a; }
static inline Vec div(Vec a, Vec b) { DIJIANG_LANES a.lane[i] /= b.lane[i]; return a; }
static inline Vec fma(Vec a, Vec b, Vec c) {
    DIJIANG_LANES c.lane[i] += a.lane[i] * b.lane[i];
    return c;
}
static inline Vec min(Vec a, Vec b) {
    DIJIANG_LANES a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}
static inline Vec max(Vec a, Vec b) {
    DIJIANG_LANES a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}
// One bit for each lane, set where a >= b.
static inline uint32_t reaching(Vec a, Vec b) {
    uint32_t bits = 0;
    DIJIANG_LANES bits |= static_cast<uint32_t>(a.lane[i] >= b.lane[i]) << i;
    return bits;
}
// a in the lanes whose bit is set, b in the others.
static inline Vec choose(uint32_t lanes, Vec a, Vec b) {
    DIJIANG_LANES a.lane[i] = (lanes >> i) & 1u ? a.lane[i] : b.lane[i];
    return a;
}
// Lanes are added pairwise in one fixed order: halves, quarters, eighths, pairs.
static inline float sum_lanes(Vec v) {
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) v.lane[i] += v.lane[i + width];
    }
    return v.lane[0];
}
static inline float largest_lane(Vec v) {
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) {
            v.lane[i] = v.lane[i + width] > v.lane[i] ? v.lane[i + width] : v.lane[i];
        }
    }
    return v.lane[0];
}
static inline Vec abs(Vec a) { DIJIANG_LANES a.lane[i] = std::fabs(a.lane[i]); return a; }
static inline Vec nearest(Vec a) { DIJIANG_LANES a.lane[i] = std::nearbyint(a.lane[i]); return a; }
// a * 2^n for whole n in -127 ... 127.
static inline Vec scale_by_power(Vec a, Vec n) {
    DIJIANG_LANES {
        const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n.lane[i]) + 127) << 23;
        float power;
        std::memcpy(&power, &bits, sizeof power);
        a.lane[i] *= power;
    }
    return a;
}

static inline Word broadcast_word(const void *p) {
    Word r;
    uint32_t x;
    std::memcpy(&x, p, sizeof x);
    DIJIANG_LANES r.lane[i] = x;
    return r;
}
static inline Word load_word(const void *p) { Word r; std::memcpy(&r, p, sizeof r); return r; }
static inline Vec as_floats(Word w) { Vec r; std::memcpy(&r, &w, sizeof r); return r; }

// acc + x w for two bfloat16 in each word.
static inline Vec dot_bf16(Vec acc, Word x, Word w) {
    Word low_x, low_w, high_x, high_w;
    DIJIANG_LANES {
        low_x.lane[i] = x.lane[i] << 16;
        low_w.lane[i] = w.lane[i] << 16;
        high_x.lane[i] = x.lane[i] & 0xffff0000u;
        high_w.lane[i] = w.lane[i] & 0xffff0000u;
    }
    return fma(as_floats(high_x), as_floats(high_w), fma(as_floats(low_x), as_floats(low_w), acc));
}

static inline Sum zero_sum() { return Sum{}; }
// acc + x w for four int8 in each word.
static inline Sum dot_int8(Sum acc, Word x, Word w) {
    DIJIANG_LANES {
        for (int shift = 0; shift < 32; shift += 8) {
            acc.lane[i] += static_cast<int8_t>(x.lane[i] >> shift) * static_cast<int8_t>(w.lane[i] >> shift);
        }
    }
    return acc;
}
// What the offset of inputs has added to the sums of 16 columns.
static inline Sum load_offset(const int32_t *) { return zero_sum(); }
static inline Sum subtract(Sum acc, Sum) { return acc; }
static inline Vec to_floats(Sum s) {
    Vec r;
    DIJIANG_LANES r.lane[i] = static_cast<float>(s.lane[i]);
    return r;
}

// Whole numbers in -127 ... 127 as bytes.
static inline void store_int8(void *p, Vec v) {
    int8_t bytes[16];
    DIJIANG_LANES bytes[i] = static_cast<int8_t>(v.lane[i]);
    std::memcpy(p, bytes, sizeof bytes);
}
static inline void store_bf16(void *p, Vec v) {
    uint16_t halves[16];
    DIJIANG_LANES {
        uint32_t bits;
        std::memcpy(&bits, &v.lane[i], sizeof bits);
        const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
        const uint32_t nearest_even = bits + 0x7fffu + ((bits >> 16) & 1u);
        halves[i] = static_cast<uint16_t>((is_nan ? bits | 0x400000u : nearest_even) >> 16);
    }
    std::memcpy(p, halves, sizeof halves);
}

#undef DIJIANG_LANES
