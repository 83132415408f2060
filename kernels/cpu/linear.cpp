// Linear layers in bfloat16: out[t] = x[t] @ weight.T + bias, summed in float32.
//
// The weight is packed once into tiles of 32 outputs, each [ceil(inputs / 2)][32][2]. A step of few tokens reads
// every tile once, front to back, which is as fast as memory gives it; a step of many finds the tile in the cache
// for every block of 12 tokens.
#include "common.h"

namespace {

int64_t num_pairs(int64_t inputs) { return (inputs + 1) / 2; }
int64_t num_tiles(int64_t outputs) { return (outputs + TILE - 1) / TILE; }

struct Layer {
    const bf16* packed;
    const bf16* bias;  // or null
    int64_t inputs, outputs;
};

// sum[m][half] = the tile's 32 outputs for M rows of x.
template <int M>
void sum_tile(const Layer& layer, int64_t tile_index, const bf16* x, int64_t x_stride, __m512 (&sum)[M][2]) {
    const bf16* tile = layer.packed + tile_index * num_pairs(layer.inputs) * TILE * 2;
    const int64_t first_output = tile_index * TILE, left = layer.outputs - first_output;
    const bf16* rows[M];
    for (int m = 0; m < M; m++) {
        rows[m] = x + m * x_stride;
        for (int half = 0; half < 2; half++)
            sum[m][half] = layer.bias ? load(layer.bias + first_output + half * LANES, first_lanes(left - half * LANES))
                                      : _mm512_setzero_ps();
    }
    dot<M>(sum, rows, tile, layer.inputs / 2);
    if (layer.inputs % 2 == 0) return;
    // The last input has no partner: its place in the tile is zero.
    const int64_t last = layer.inputs - 1;
    const bf16* pairs = tile + last / 2 * TILE * 2;
    for (int m = 0; m < M; m++) {
        const __m512bh x_last = (__m512bh)_mm512_set1_epi32(rows[m][last]);
        sum[m][0] = _mm512_dpbf16_ps(sum[m][0], load_pairs(pairs), x_last);
        sum[m][1] = _mm512_dpbf16_ps(sum[m][1], load_pairs(pairs + TILE), x_last);
    }
}

// Calls write(tile, token, sum of M tokens) for all tiles and tokens.
template <class Write>
void multiply(const Layer& layer, const bf16* x, int64_t x_stride, int64_t tokens, int threads, const Write& write) {
    const int64_t tiles = num_tiles(layer.outputs);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t tile = 0; tile < tiles; tile++)
        for_row_blocks(tokens, [&]<int M>(int64_t token) {
            __m512 sum[M][2];
            sum_tile<M>(layer, tile, x + token * x_stride, x_stride, sum);
            write.template operator()<M>(tile, token, sum);
        });
}

template <class Out>
void linear(const Layer& layer, const bf16* x, int64_t x_stride, int64_t tokens, Out* out, int threads) {
    multiply(layer, x, x_stride, tokens, threads, [&]<int M>(int64_t tile, int64_t token, const __m512(&sum)[M][2]) {
        for (int m = 0; m < M; m++)
            for (int64_t half = 0; half < 2; half++) {
                const int64_t output = tile * TILE + half * LANES;
                store(out + (token + m) * layer.outputs + output, first_lanes(layer.outputs - output), sum[m][half]);
            }
    });
}

}  // namespace

extern "C" {

int64_t kvb_packed_size(int64_t outputs, int64_t inputs) { return num_tiles(outputs) * num_pairs(inputs) * TILE * 2; }

void kvb_pack(const bf16* weight, int64_t outputs, int64_t inputs, bf16* packed, int threads) {
    const int64_t pairs = num_pairs(inputs);
#pragma omp parallel for num_threads(threads)
    for (int64_t tile = 0; tile < num_tiles(outputs); tile++)
        for (int64_t pair = 0; pair < pairs; pair++)
            for (int64_t output = 0; output < TILE; output++)
                for (int64_t side = 0; side < 2; side++) {
                    const int64_t row = tile * TILE + output, column = 2 * pair + side;
                    packed[((tile * pairs + pair) * TILE + output) * 2 + side] =
                        row < outputs && column < inputs ? weight[row * inputs + column] : bf16(0);
                }
}

// x [tokens, inputs] with rows x_stride apart; out [tokens, outputs] in float32 or bfloat16.
void kvb_linear(const bf16* packed, const bf16* bias, int64_t outputs, int64_t inputs, const bf16* x, int64_t x_stride,
                int64_t tokens, void* out, int out_is_float, int threads) {
    const Layer layer{packed, bias, inputs, outputs};
    if (out_is_float)
        linear(layer, x, x_stride, tokens, static_cast<float*>(out), threads);
    else
        linear(layer, x, x_stride, tokens, static_cast<bf16*>(out), threads);
}

// silu(gate) * up, where the packed weight has 16 gates, then the 16 ups that belong to them, and so on.
// out [tokens, outputs].
void kvb_gated_linear(const bf16* packed, const bf16* bias, int64_t outputs, int64_t inputs, const bf16* x,
                      int64_t x_stride, int64_t tokens, bf16* out, int threads) {
    const Layer layer{packed, bias, inputs, (outputs + LANES - 1) / LANES * TILE};
    multiply(layer, x, x_stride, tokens, threads, [&]<int M>(int64_t tile, int64_t token, const __m512(&sum)[M][2]) {
        const int64_t output = tile * LANES;
        for (int m = 0; m < M; m++)
            store(out + (token + m) * outputs + output, first_lanes(outputs - output),
                  _mm512_mul_ps(silu(sum[m][0]), sum[m][1]));
    });
}

}  // extern "C"
