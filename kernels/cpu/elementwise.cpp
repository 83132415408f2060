// The small ops in bfloat16, computed in float32 and rounded once.
#include "common.h"

namespace {

void add_rows(const bf16* x, const bf16* y, bf16* sum, int64_t size) {
    for (int64_t i = 0; i < size; i += LANES) {
        const __mmask16 lanes = first_lanes(size - i);
        store(sum + i, lanes, _mm512_add_ps(load(x + i, lanes), load(y + i, lanes)));
    }
}

void norm_row(const bf16* x, const bf16* weight, bf16* out, int64_t size, float eps) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += LANES) {
        const __m512 value = load(x + i, first_lanes(size - i));
        squares = _mm512_fmadd_ps(value, value, squares);
    }
    const float mean = _mm512_reduce_add_ps(squares) / float(size);
    const __m512 scale = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
    for (int64_t i = 0; i < size; i += LANES) {
        const __mmask16 lanes = first_lanes(size - i);
        const __m512 value = _mm512_mul_ps(load(x + i, lanes), scale);
        store(out + i, lanes, _mm512_mul_ps(value, load(weight + i, lanes)));
    }
}

}  // namespace

extern "C" {

// x [tokens, size] with rows x_stride apart -> out [tokens, size].
void kvb_rms_norm(const bf16* x, int64_t x_stride, const bf16* weight, bf16* out, int64_t tokens, int64_t size, float eps,
                  int threads) {
#pragma omp parallel for num_threads(threads) if (tokens > 16)
    for (int64_t t = 0; t < tokens; t++)
        norm_row(x + t * x_stride, weight, out + t * size, size, eps);
}

// sum = residual + x, out = its norm; all [tokens, size].
void kvb_fused_add_rms_norm(const bf16* x, const bf16* residual, const bf16* weight, bf16* out, bf16* sum, int64_t tokens,
                            int64_t size, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (tokens > 16)
    for (int64_t t = 0; t < tokens; t++) {
        add_rows(residual + t * size, x + t * size, sum + t * size, size);
        norm_row(sum + t * size, weight, out + t * size, size, eps);
    }
}

// x [tokens, heads, 2 * half] with rows x_stride apart, cos and sin [tokens, half] -> out like x, dense.
void kvb_rotary_embedding(const bf16* x, int64_t x_stride, const bf16* cos, const bf16* sin, bf16* out, int64_t tokens,
                          int64_t heads, int64_t half, int threads) {
#pragma omp parallel for num_threads(threads) if (tokens > 16)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t h = 0; h < heads; h++) {
            const bf16* from = x + t * x_stride + h * 2 * half;
            bf16* to = out + (t * heads + h) * 2 * half;
            for (int64_t i = 0; i < half; i += LANES) {
                const __mmask16 lanes = first_lanes(half - i);
                const __m512 c = load(cos + t * half + i, lanes), s = load(sin + t * half + i, lanes);
                const __m512 first = load(from + i, lanes), second = load(from + half + i, lanes);
                store(to + i, lanes, _mm512_fmsub_ps(first, c, _mm512_mul_ps(second, s)));
                store(to + half + i, lanes, _mm512_fmadd_ps(second, c, _mm512_mul_ps(first, s)));
            }
        }
}

// x [tokens, 2 * size] -> out [tokens, size].
void kvb_silu_and_mul(const bf16* x, bf16* out, int64_t tokens, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) if (tokens > 16)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = 0; i < size; i += LANES) {
            const __mmask16 lanes = first_lanes(size - i);
            const __m512 gate = load(x + t * 2 * size + i, lanes), up = load(x + t * 2 * size + size + i, lanes);
            store(out + t * size + i, lanes, _mm512_mul_ps(silu(gate), up));
        }
}

// key, value [tokens, width] with rows key_stride and value_stride apart -> rows `slots` of the caches [any, width].
void kvb_store_kv(const bf16* key, int64_t key_stride, const bf16* value, int64_t value_stride, bf16* key_cache,
                  bf16* value_cache, const int64_t* slots, int64_t tokens, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) if (tokens > 16)
    for (int64_t t = 0; t < tokens; t++) {
        std::memcpy(key_cache + slots[t] * width, key + t * key_stride, width * sizeof(bf16));
        std::memcpy(value_cache + slots[t] * width, value + t * value_stride, width * sizeof(bf16));
    }
}

}  // extern "C"
