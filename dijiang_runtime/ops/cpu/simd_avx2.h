// Vectors of 16 floats as two AVX2 registers. What each function means: simd_portable.h.

#include "simd_halves.h"
#include "simd_plain.h"

struct Vec { __m256 a, b; };
struct Word { __m256i a, b; };
struct Sum { __m256i a, b; };

constexpr int kMaxRows = 4;
constexpr int kTileVectors = 1;
constexpr int kInputOffset = 0;

static inline Vec broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline Vec load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float *p, Vec v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
static inline void stream(float *p, Vec v) {
    _mm256_stream_ps(p, v.a);
    _mm256_stream_ps(p + 8, v.b);
}
static inline void fence() { _mm_sfence(); }
static inline void prefetch(const void *p) {
    _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T1);
}
static inline Vec load_first(const float *p, int64_t n, float rest = 0.0f) {
    alignas(32) float all[16];
    for (int i = 0; i < 16; ++i) all[i] = i < n ? p[i] : rest;
    return load(all);
}
static inline void store_first(float *p, int64_t n, Vec v) {
    alignas(32) float all[16];
    store(all, v);
    for (int64_t i = 0; i < n; ++i) p[i] = all[i];
}

static inline Vec add(Vec x, Vec y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline Vec sub(Vec x, Vec y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline Vec mul(Vec x, Vec y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline Vec div(Vec x, Vec y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline Vec fma(Vec x, Vec y, Vec z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static inline Vec min(Vec x, Vec y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline Vec max(Vec x, Vec y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline uint32_t reaching(Vec x, Vec y) {
    const int a = _mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GE_OQ));
    const int b = _mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GE_OQ));
    return static_cast<uint32_t>(a | b << 8);
}
static inline __m256 choose(__m256i lanes, __m256 x, __m256 y) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i is_set = _mm256_cmpeq_epi32(_mm256_and_si256(lanes, bit), bit);
    return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(is_set));
}
static inline Vec choose(uint32_t lanes, Vec x, Vec y) {
    const __m256i all = _mm256_set1_epi32(static_cast<int32_t>(lanes));
    return {choose(all, x.a, y.a), choose(_mm256_srli_epi32(all, 8), x.b, y.b)};
}
static inline float sum_lanes(Vec x) { return sum_half(_mm256_add_ps(x.a, x.b)); }
static inline float largest_lane(Vec x) { return largest_half(_mm256_max_ps(x.b, x.a)); }
static inline Vec abs(Vec x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
static inline Vec nearest(Vec x) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
static inline __m256 power_of_two(__m256 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
static inline Vec scale_by_power(Vec x, Vec n) {
    return mul(x, {power_of_two(n.a), power_of_two(n.b)});
}

static inline Word broadcast_word(const void *p) {
    int32_t x;
    std::memcpy(&x, p, sizeof x);
    return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
static inline Word load_word(const void *p) {
    const __m256i *words = static_cast<const __m256i *>(p);
    return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
}
static inline Vec as_floats(Word w) { return {_mm256_castsi256_ps(w.a), _mm256_castsi256_ps(w.b)}; }

static inline Vec low_halves(Word w) {
    return as_floats({_mm256_slli_epi32(w.a, 16), _mm256_slli_epi32(w.b, 16)});
}
static inline Vec high_halves(Word w) {
    const __m256i mask = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u));
    return as_floats({_mm256_and_si256(w.a, mask), _mm256_and_si256(w.b, mask)});
}
static inline Vec dot_bf16(Vec acc, Word x, Word w) {
    return fma(high_halves(x), high_halves(w), fma(low_halves(x), low_halves(w), acc));
}

static inline Sum zero_sum() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
// |w| is unsigned and x takes w's sign. Two products are at most 2 * 127 * 127, which 16 bits hold.
static inline __m256i dot_int8_half(__m256i acc, __m256i x, __m256i w) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
static inline Sum dot_int8(Sum acc, Word x, Word w) {
    return {dot_int8_half(acc.a, x.a, w.a), dot_int8_half(acc.b, x.b, w.b)};
}
// Nothing is added to inputs here.
static inline Sum load_offset(const int32_t *) { return zero_sum(); }
static inline Sum subtract(Sum acc, Sum) { return acc; }
static inline Vec to_floats(Sum s) { return {_mm256_cvtepi32_ps(s.a), _mm256_cvtepi32_ps(s.b)}; }

static inline void store_int8(void *p, Vec v) {
    const __m256i halves = _mm256_permute4x64_epi64(
        _mm256_packs_epi32(_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b)), 0xd8);
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    _mm_storeu_si128(static_cast<__m128i *>(p), bytes);
}
static inline __m256i round_to_bf16(__m256 v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i even = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(even, nan, is_nan), 16);
}
static inline void store_bf16(void *p, Vec v) {
    const __m256i packed = _mm256_packus_epi32(round_to_bf16(v.a), round_to_bf16(v.b));
    _mm256_storeu_si256(static_cast<__m256i *>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
