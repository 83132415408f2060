// What the cpu kernels share: bfloat16 rows in registers of 16 float32 lanes, and dot products of bfloat16 pairs.
// Needs AVX-512 with BF16 (`kernels/cpu/library.py` looks for it before anything is compiled).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

using bf16 = uint16_t;

constexpr int64_t LANES = 16;  // float32 numbers in a register
constexpr int64_t TILE = 32;   // outputs of one tile: two registers

static inline __mmask16 first_lanes(int64_t count) {
    return count >= LANES ? __mmask16(0xffff) : count <= 0 ? __mmask16(0) : __mmask16((1u << count) - 1);
}

static inline __m512 widen(__m256i narrow) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

static inline __m512 load(const bf16* from, __mmask16 lanes) {
    return widen(_mm256_maskz_loadu_epi16(lanes, from));
}

static inline void store(bf16* to, __mmask16 lanes, __m512 values) {
    _mm256_mask_storeu_epi16(to, lanes, (__m256i)_mm512_cvtneps_pbh(values));
}

static inline void store(float* to, __mmask16 lanes, __m512 values) { _mm512_mask_storeu_ps(to, lanes, values); }

static inline __m512bh load_pairs(const bf16* from) { return (__m512bh)_mm512_loadu_si512(from); }

// Two consecutive numbers in every lane.
static inline __m512bh broadcast_pair(const bf16* from) {
    int32_t pair;
    std::memcpy(&pair, from, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

// e^x for x <= 0: 0 for anything below -87, minus infinity included, and NaN for NaN. x log2 e = n + f with
// |f| <= 1/2, then a polynomial for 2^f, fitted to a relative error of 1e-7; rounding x log2 e adds up to 5e-6 for the
// smallest results.
static inline __m512 exp_negative(__m512 x) {
    const __mmask16 is_normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    const __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    const __m512 n = _mm512_roundscale_ps(power, 0), f = _mm512_sub_ps(power, n);
    __m512 e = _mm512_set1_ps(1.3276400e-3f);
    e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(9.6755200e-3f));
    e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(5.5507130e-2f));
    e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(2.4022120e-1f));
    e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(6.9314697e-1f));
    e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(is_normal, e, n);
}

// x / (1 + e^-x) = x e^min(x, 0) / (1 + e^-|x|): no power is ever large.
static inline __m512 silu(__m512 x) {
    const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
    const __m512 decay = exp_negative(_mm512_sub_ps(zero, _mm512_abs_ps(x)));
    const __m512 numerator = _mm512_mask_mov_ps(one, _mm512_cmp_ps_mask(x, zero, _CMP_LT_OQ), decay);
    return _mm512_div_ps(_mm512_mul_ps(x, numerator), _mm512_add_ps(one, decay));
}

// sum[m][half] += rows[m] · tile for M rows of `num_pairs` pairs and a tile of 32 outputs, laid out
// [num_pairs][32][2]: the pair of inputs 2k, 2k+1 of every output side by side, as the instruction wants it.
// Each sum adds its pairs one after another for every M: a row's result never depends on its neighbours.
template <int M>
static inline void dot(__m512 (&sum)[M][2], const bf16* const (&rows)[M], const bf16* tile, int64_t num_pairs) {
    __m512 own[M][2];  // a copy that no other code can see stays in registers
    for (int m = 0; m < M; m++) own[m][0] = sum[m][0], own[m][1] = sum[m][1];
    for (int64_t k = 0; k < num_pairs; k++) {
        const bf16* pairs = tile + k * TILE * 2;
        const __m512bh low = load_pairs(pairs), high = load_pairs(pairs + TILE);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            const __m512bh x = broadcast_pair(rows[m] + 2 * k);
            own[m][0] = _mm512_dpbf16_ps(own[m][0], low, x);
            own[m][1] = _mm512_dpbf16_ps(own[m][1], high, x);
        }
    }
    for (int m = 0; m < M; m++) sum[m][0] = own[m][0], sum[m][1] = own[m][1];
}

constexpr int MAX_ROWS = 12;  // rows of one call of `dot`: 24 sums, 2 weights and an input fill the registers

// Calls function.template operator()<M>(first row) for `count` rows in blocks of at most MAX_ROWS.
template <class Function>
static inline void for_row_blocks(int64_t count, const Function& function) {
    int64_t row = 0;
    for (; row + MAX_ROWS <= count; row += MAX_ROWS) function.template operator()<MAX_ROWS>(row);
    switch (count - row) {
        case 1: return function.template operator()<1>(row);
        case 2: return function.template operator()<2>(row);
        case 3: return function.template operator()<3>(row);
        case 4: return function.template operator()<4>(row);
        case 5: return function.template operator()<5>(row);
        case 6: return function.template operator()<6>(row);
        case 7: return function.template operator()<7>(row);
        case 8: return function.template operator()<8>(row);
        case 9: return function.template operator()<9>(row);
        case 10: return function.template operator()<10>(row);
        case 11: return function.template operator()<11>(row);
    }
}
