// Paged attention in bfloat16: one pass over the keys, softmax on the way (arXiv:1805.02867, arXiv:2205.14135).
//
// Work is cut into items: some queries of one sequence and all heads of one group, which share keys and values. A row
// is one query of one head. An item walks its keys in spans of 64; each span is brought into the tiles of `dot` once
// and used by all rows of the item:
//
//     scores[row][key] = rows · keys          tiles of 32 keys, pairs along the head
//     out[row][dim]   += weights · values     tiles of 32 dims, pairs along the keys
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common.h"

extern "C" {

// One step's sequences; see `PlanAttention` in kernels/interface.py. Kept alive by the caller.
struct kvb_attention_plan {
    int64_t num_sequences;
    const int64_t* query_starts;  // [num_sequences + 1]
    const int64_t* kv_lens;       // [num_sequences]
    const int64_t* block_tables;  // [num_sequences, table_width]
    int64_t table_width;
    int64_t block_size;
    int64_t window;  // tokens that a query reads, itself included
    float scale;
};
}

namespace {

constexpr int64_t SPAN = 2 * TILE;  // keys
constexpr int64_t ITEM_ROWS = 192;  // about as many rows as share a span while all they need stays in the L2 cache

struct Heads {
    int64_t query, kv, dim;
    int64_t group() const { return query / kv; }
    int64_t dim_tiles() const { return (dim + TILE - 1) / TILE; }
};

struct Item {
    int64_t sequence, kv_head, first_query, num_queries;
};

// What one thread needs, reused from call to call.
struct Scratch {
    std::vector<bf16> keys, values;          // a span in tiles
    std::vector<float> out, largest, total;  // per row: weighted sum so far, largest score, sum of weights
    alignas(64) float scores[MAX_ROWS][SPAN];
    alignas(64) bf16 weights[MAX_ROWS][SPAN];

    void reset(int64_t rows, const Heads& heads) {
        keys.resize(SPAN * heads.dim);
        values.resize(SPAN * heads.dim_tiles() * TILE);
        out.assign(rows * heads.dim_tiles() * TILE, 0.0f);
        largest.assign(rows, -INFINITY);
        total.assign(rows, 0.0f);
    }
};

// 16 rows of up to 16 pairs -> 16 pairs of 16 rows, each TILE pairs apart.
void transpose(const bf16* const* rows, int64_t first_pair, __mmask16 pairs, bf16* to) {
    __m512i in[16], half[16];
    for (int i = 0; i < 16; i++)
        in[i] = rows[i] ? _mm512_maskz_loadu_epi32(pairs, rows[i] + 2 * first_pair) : _mm512_setzero_si512();
    for (int i = 0; i < 16; i += 2) {
        half[i] = _mm512_unpacklo_epi32(in[i], in[i + 1]);
        half[i + 1] = _mm512_unpackhi_epi32(in[i], in[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        in[i] = _mm512_unpacklo_epi64(half[i], half[i + 2]);
        in[i + 1] = _mm512_unpackhi_epi64(half[i], half[i + 2]);
        in[i + 2] = _mm512_unpacklo_epi64(half[i + 1], half[i + 3]);
        in[i + 3] = _mm512_unpackhi_epi64(half[i + 1], half[i + 3]);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            half[8 * j + i] = _mm512_shuffle_i32x4(in[8 * j + i], in[8 * j + i + 4], 0x88);
            half[8 * j + i + 4] = _mm512_shuffle_i32x4(in[8 * j + i], in[8 * j + i + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        in[i] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0x88);
        in[i + 8] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0xdd);
    }
    for (int i = 0; i < 16 && (pairs >> i & 1); i++) _mm512_storeu_si512(to + (first_pair + i) * TILE * 2, in[i]);
}

// Keys [64 rows; null past the end] -> two tiles [dim / 2][32 keys][2].
void tile_keys(const bf16* const* rows, const Heads& heads, bf16* to) {
    const int64_t pairs = heads.dim / 2;
    for (int64_t row = 0; row < SPAN; row += LANES) {
        bf16* lanes = to + row / TILE * (pairs * TILE * 2) + row % TILE * 2;
        for (int64_t pair = 0; pair < pairs; pair += LANES) transpose(rows + row, pair, first_lanes(pairs - pair), lanes);
    }
}

// Values [64 rows; null past the end] -> tiles of 32 dims [32 pairs of keys][32 dims][2].
void tile_values(const bf16* const* rows, const Heads& heads, bf16* to) {
    const __m512i first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), second = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
    for (int64_t tile = 0; tile < heads.dim_tiles(); tile++)
        for (int64_t row = 0; row < SPAN; row += 2, to += TILE * 2) {
            const int64_t left = heads.dim - tile * TILE;
            const __mmask32 dims = left >= TILE ? __mmask32(-1) : __mmask32((1u << left) - 1);
            const __m512i zero = _mm512_setzero_si512();
            const __m512i even = rows[row] ? _mm512_maskz_loadu_epi16(dims, rows[row] + tile * TILE) : zero;
            const __m512i odd = rows[row + 1] ? _mm512_maskz_loadu_epi16(dims, rows[row + 1] + tile * TILE) : zero;
            // Interleaving works within quarters of a register; the quarters are then put in order.
            const __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
            _mm512_storeu_si512(to, _mm512_permutex2var_epi64(low, first, high));
            _mm512_storeu_si512(to + TILE, _mm512_permutex2var_epi64(low, second, high));
        }
}

class Attention {
   public:
    Attention(const kvb_attention_plan& plan, const Heads& heads, const bf16* query, int64_t query_stride,
              const bf16* key_cache, const bf16* value_cache, bf16* out, float* log_sum_exp)
        : plan_(plan), heads_(heads), query_(query), query_stride_(query_stride), key_cache_(key_cache),
          value_cache_(value_cache), out_(out), log_sum_exp_(log_sum_exp) {}

    std::vector<Item> items() const {
        std::vector<Item> items;
        const int64_t most = std::max<int64_t>(1, ITEM_ROWS / heads_.group());
        for (int64_t s = 0; s < plan_.num_sequences; s++)
            for (int64_t q = plan_.query_starts[s]; q < plan_.query_starts[s + 1]; q += most)
                for (int64_t head = 0; head < heads_.kv; head++)
                    items.push_back({s, head, q, std::min(most, plan_.query_starts[s + 1] - q)});
        return items;
    }

    void run(const Item& item, Scratch& scratch) const {
        const int64_t rows = item.num_queries * heads_.group();
        scratch.reset(rows, heads_);
        const int64_t first = std::max<int64_t>(0, position(item, 0) - plan_.window + 1), last = position(item, rows - 1);
        for (int64_t span = first / SPAN * SPAN; span <= last; span += SPAN) {
            load_span(item, span, first, last, scratch);
            for_row_blocks(rows, [&]<int M>(int64_t row) { attend<M>(item, row, span, scratch); });
        }
        for (int64_t row = 0; row < rows; row++) write(item, row, scratch);
    }

   private:
    // The place in its sequence of a row's query, which is also the last key that it reads.
    int64_t position(const Item& item, int64_t row) const {
        const int64_t from_end = plan_.query_starts[item.sequence + 1] - (item.first_query + row / heads_.group());
        return plan_.kv_lens[item.sequence] - from_end;
    }

    // Queries and outputs: the row's place among the step's tokens, and its head.
    int64_t token(const Item& item, int64_t row) const { return item.first_query + row / heads_.group(); }
    int64_t head(const Item& item, int64_t row) const { return item.kv_head * heads_.group() + row % heads_.group(); }

    void load_span(const Item& item, int64_t span, int64_t first, int64_t last, Scratch& scratch) const {
        const bf16 *keys[SPAN] = {}, *values[SPAN] = {};
        const int64_t* blocks = plan_.block_tables + item.sequence * plan_.table_width;
        for (int64_t i = std::max<int64_t>(0, first - span); i < std::min(SPAN, last + 1 - span); i++) {
            const int64_t slot = blocks[(span + i) / plan_.block_size] * plan_.block_size + (span + i) % plan_.block_size;
            const int64_t offset = (slot * heads_.kv + item.kv_head) * heads_.dim;
            keys[i] = key_cache_ + offset;
            values[i] = value_cache_ + offset;
        }
        tile_keys(keys, heads_, scratch.keys.data());
        tile_values(values, heads_, scratch.values.data());
    }

    template <int M>
    void attend(const Item& item, int64_t row, int64_t span, Scratch& scratch) const {
        const int64_t oldest = position(item, row) - plan_.window + 1, newest = position(item, row + M - 1);
        if (newest < span || oldest >= span + SPAN) return;
        score<M>(item, row, span, scratch);
        const int64_t last_oldest = position(item, row + M - 1) - plan_.window + 1;
        if (position(item, row) < span + SPAN - 1 || last_oldest > span) hide<M>(item, row, span, scratch);
        float kept[M];
        weigh<M>(row, scratch, kept);
        const bf16* weights[M];
        for (int m = 0; m < M; m++) weights[m] = scratch.weights[m];
        const int64_t width = heads_.dim_tiles() * TILE;
        for (int64_t tile = 0; tile < heads_.dim_tiles(); tile++) {
            __m512 sum[M][2];
            float* out = scratch.out.data() + row * width + tile * TILE;
            for (int m = 0; m < M; m++)
                for (int half = 0; half < 2; half++)
                    sum[m][half] = _mm512_mul_ps(_mm512_loadu_ps(out + m * width + half * LANES), _mm512_set1_ps(kept[m]));
            dot<M>(sum, weights, scratch.values.data() + tile * SPAN * TILE, SPAN / 2);
            for (int m = 0; m < M; m++)
                for (int half = 0; half < 2; half++) _mm512_storeu_ps(out + m * width + half * LANES, sum[m][half]);
        }
    }

    // scratch.scores = scale * query · key.
    template <int M>
    void score(const Item& item, int64_t row, int64_t span, Scratch& scratch) const {
        const bf16* queries[M];
        for (int m = 0; m < M; m++)
            queries[m] = query_ + token(item, row + m) * query_stride_ + head(item, row + m) * heads_.dim;
        const __m512 scale = _mm512_set1_ps(plan_.scale);
        for (int64_t tile = 0; tile < SPAN / TILE; tile++) {
            __m512 sum[M][2];
            for (int m = 0; m < M; m++) sum[m][0] = sum[m][1] = _mm512_setzero_ps();
            dot<M>(sum, queries, scratch.keys.data() + tile * heads_.dim * TILE, heads_.dim / 2);
            for (int m = 0; m < M; m++)
                for (int half = 0; half < 2; half++)
                    _mm512_store_ps(&scratch.scores[m][tile * TILE + half * LANES], _mm512_mul_ps(sum[m][half], scale));
        }
    }

    // Minus infinity wherever a row may not read the key.
    template <int M>
    void hide(const Item& item, int64_t row, int64_t span, Scratch& scratch) const {
        for (int m = 0; m < M; m++) {
            const int64_t newest = position(item, row + m), oldest = newest - plan_.window + 1;
            for (int64_t i = 0; i < SPAN; i += LANES) {
                const __mmask16 readable = first_lanes(newest - span - i + 1) & ~first_lanes(oldest - span - i);
                const __m512 scores = _mm512_load_ps(scratch.scores[m] + i);
                _mm512_store_ps(scratch.scores[m] + i, _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), readable, scores));
            }
        }
    }

    // Turns scores into weights relative to each row's largest score so far; `kept`: what factor its sums so far keep.
    template <int M>
    static void weigh(int64_t row, Scratch& scratch, float (&kept)[M]) {
        const __mmask16 rows = first_lanes(M);
        alignas(64) float largest[LANES], total[LANES];
        for (int m = 0; m < M; m++) {
            __m512 most = _mm512_load_ps(scratch.scores[m]);
            for (int64_t i = LANES; i < SPAN; i += LANES) most = _mm512_max_ps(most, _mm512_load_ps(scratch.scores[m] + i));
            // A row that may not read anything yet weighs nothing, relative to any number.
            largest[m] = std::max({scratch.largest[row + m], _mm512_reduce_max_ps(most), -std::numeric_limits<float>::max()});
        }
        for (int m = 0; m < M; m++) {
            __m512 sum = _mm512_setzero_ps();
            for (int64_t i = 0; i < SPAN; i += LANES) {
                const __m512 score = _mm512_load_ps(scratch.scores[m] + i);
                const __m512 weight = exp_negative(_mm512_sub_ps(score, _mm512_set1_ps(largest[m])));
                sum = _mm512_add_ps(sum, weight);
                store(scratch.weights[m] + i, __mmask16(-1), weight);
            }
            total[m] = _mm512_reduce_add_ps(sum);
        }
        const __m512 before = _mm512_maskz_loadu_ps(rows, scratch.largest.data() + row);
        const __m512 now = _mm512_maskz_loadu_ps(rows, largest);
        const __m512 factor = exp_negative(_mm512_sub_ps(before, now));
        const __m512 sums = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(rows, scratch.total.data() + row), factor,
                                            _mm512_maskz_loadu_ps(rows, total));
        _mm512_mask_storeu_ps(scratch.largest.data() + row, rows, now);
        _mm512_mask_storeu_ps(scratch.total.data() + row, rows, sums);
        _mm512_mask_storeu_ps(kept, rows, factor);
    }

    void write(const Item& item, int64_t row, const Scratch& scratch) const {
        const int64_t place = token(item, row) * heads_.query + head(item, row);
        const __m512 share = _mm512_set1_ps(1.0f / scratch.total[row]);
        const float* out = scratch.out.data() + row * heads_.dim_tiles() * TILE;
        for (int64_t i = 0; i < heads_.dim; i += LANES) {
            const __mmask16 lanes = first_lanes(heads_.dim - i);
            store(out_ + place * heads_.dim + i, lanes, _mm512_mul_ps(_mm512_loadu_ps(out + i), share));
        }
        if (log_sum_exp_) log_sum_exp_[place] = scratch.largest[row] + std::log(scratch.total[row]);
    }

    const kvb_attention_plan& plan_;
    const Heads heads_;
    const bf16* query_;
    int64_t query_stride_;
    const bf16 *key_cache_, *value_cache_;
    bf16* out_;
    float* log_sum_exp_;
};

}  // namespace

// query [tokens, query_heads, dim] with tokens query_stride apart, caches [any, block_size, kv_heads, dim] -> out like
// query, dense; log_sum_exp [tokens, query_heads] or null.
extern "C" void kvb_attention(const kvb_attention_plan* plan, int64_t query_heads, int64_t kv_heads, int64_t dim,
                              const bf16* query, int64_t query_stride, const bf16* key_cache, const bf16* value_cache,
                              bf16* out, float* log_sum_exp, int threads) {
    const Attention attention(*plan, {query_heads, kv_heads, dim}, query, query_stride, key_cache, value_cache, out,
                              log_sum_exp);
    const std::vector<Item> items = attention.items();
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (size_t i = 0; i < items.size(); i++) {
        static thread_local Scratch scratch;
        attention.run(items[i], scratch);
    }
}
