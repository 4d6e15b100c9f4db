// Vectors of 16 floats as one AVX-512 register. What each function means: simd_portable.h.
// The instructions for int8 and bfloat16 products are used where the target says that it has them: a
// pragma that selects a target does not define the compiler's own macros everywhere.

#include "simd_halves.h"

using Vec = __m512;
using Word = __m512i;
// Not __m512i: with conversions to and fro, sums would not stay in registers.
using Sum = __v16si;

constexpr int kMaxRows = 6;
constexpr int kTileVectors = 4;
#ifdef DIJIANG_VNNI
constexpr int kInputOffset = 128;
#else
constexpr int kInputOffset = 0;
#endif

static inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }

static inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
static inline Vec load(const float *p) { return _mm512_loadu_ps(p); }
static inline void store(float *p, Vec v) { _mm512_storeu_ps(p, v); }
// Past the caches, to a 64-byte aligned place; fence before others read it.
static inline void stream(float *p, Vec v) { _mm512_stream_ps(p, v); }
static inline void fence() { _mm_sfence(); }
static inline void prefetch(const void *p) {
    _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T1);
}
static inline Vec load_first(const float *p, int64_t n, float rest = 0.0f) {
    return _mm512_mask_loadu_ps(broadcast(rest), first_lanes(n), p);
}
static inline void store_first(float *p, int64_t n, Vec v) {
    _mm512_mask_storeu_ps(p, first_lanes(n), v);
}

static inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
static inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
static inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
static inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
static inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
static inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
static inline uint32_t reaching(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
static inline Vec choose(uint32_t lanes, Vec a, Vec b) {
    return _mm512_mask_blend_ps(static_cast<__mmask16>(lanes), b, a);
}
static inline __m256 upper_half(Vec a) { return _mm512_extractf32x8_ps(a, 1); }
static inline float sum_lanes(Vec a) {
    return sum_half(_mm256_add_ps(_mm512_castps512_ps256(a), upper_half(a)));
}
static inline float largest_lane(Vec a) {
    return largest_half(_mm256_max_ps(upper_half(a), _mm512_castps512_ps256(a)));
}
static inline Vec abs(Vec a) { return _mm512_abs_ps(a); }
static inline Vec nearest(Vec a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline Vec scale_by_power(Vec a, Vec n) { return _mm512_scalef_ps(a, n); }

static inline Vec pairs(Vec a, Vec b, bool upper) {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_castpd_ps(upper ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
}
static inline void transpose_block(const float *from, int64_t stride, int64_t rows, int64_t columns,
                                   float *to, int64_t to_stride) {
    Vec row[16], two[16], out[16];
    for (int i = 0; i < 16; ++i) {
        row[i] = i < rows ? load_first(from + i * stride, columns) : broadcast(0.0f);
    }
    for (int i = 0; i < 16; i += 2) {
        two[i] = _mm512_unpacklo_ps(row[i], row[i + 1]);
        two[i + 1] = _mm512_unpackhi_ps(row[i], row[i + 1]);
    }
    // Now row[i + c] has, in its quarter q, column 4 q + c of rows i ... i + 3.
    for (int i = 0; i < 16; i += 4) {
        for (int c = 0; c < 4; ++c) row[i + c] = pairs(two[i + c / 2], two[i + 2 + c / 2], c % 2);
    }
    constexpr int even = 0x88, odd = 0xdd;
    for (int c = 0; c < 4; ++c) {
        const Vec a = _mm512_shuffle_f32x4(row[c], row[4 + c], even);
        const Vec b = _mm512_shuffle_f32x4(row[8 + c], row[12 + c], even);
        out[c] = _mm512_shuffle_f32x4(a, b, even);
        out[8 + c] = _mm512_shuffle_f32x4(a, b, odd);
        const Vec x = _mm512_shuffle_f32x4(row[c], row[4 + c], odd);
        const Vec y = _mm512_shuffle_f32x4(row[8 + c], row[12 + c], odd);
        out[4 + c] = _mm512_shuffle_f32x4(x, y, even);
        out[12 + c] = _mm512_shuffle_f32x4(x, y, odd);
    }
    for (int64_t c = 0; c < columns; ++c) store(to + c * to_stride, out[c]);
}

static inline Word broadcast_word(const void *p) {
    int32_t x;
    std::memcpy(&x, p, sizeof x);
    return _mm512_set1_epi32(x);
}
static inline Word load_word(const void *p) { return _mm512_loadu_si512(p); }
static inline Vec as_floats(Word w) { return _mm512_castsi512_ps(w); }

static inline Vec dot_bf16(Vec acc, Word x, Word w) {
#ifdef DIJIANG_BF16
    return _mm512_dpbf16_ps(acc, (__m512bh)x, (__m512bh)w);
#else
    const Word high = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
    const Vec low = fma(as_floats(_mm512_slli_epi32(x, 16)), as_floats(_mm512_slli_epi32(w, 16)), acc);
    return fma(as_floats(_mm512_and_si512(x, high)), as_floats(_mm512_and_si512(w, high)), low);
#endif
}

static inline Sum zero_sum() { return (Sum)_mm512_setzero_si512(); }
static inline Sum dot_int8(Sum acc, Word x, Word w) {
#ifdef DIJIANG_VNNI
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w));
    return acc;
#else
    // |w| is unsigned and x takes w's sign: two products fit into 16 bits.
    const Word zero = _mm512_setzero_si512();
    const Word signed_x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), zero, x);
    const Word pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), signed_x);
    return acc + (Sum)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#endif
}
// Inputs that are stored as x + 128 have added 128 times the column's sum.
static inline Sum load_offset(const int32_t *column_sum) {
    if (kInputOffset == 0) return zero_sum();
    return (Sum)_mm512_slli_epi32(_mm512_loadu_si512(column_sum), 7);
}
static inline Sum subtract(Sum acc, Sum offset) { return kInputOffset == 0 ? acc : acc - offset; }
static inline Vec to_floats(Sum s) { return _mm512_cvtepi32_ps((__m512i)s); }

static inline void store_int8(void *p, Vec v) {
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v));
    const __m128i offset = _mm_set1_epi8(static_cast<char>(kInputOffset));
    _mm_storeu_si128(static_cast<__m128i *>(p), _mm_xor_si128(bytes, offset));
}
static inline void store_bf16(void *p, Vec v) {
    const Word bits = _mm512_castps_si512(v);
    const Word odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const Word even = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const Word rounded = _mm512_mask_or_epi32(even, is_nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(static_cast<__m256i *>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
