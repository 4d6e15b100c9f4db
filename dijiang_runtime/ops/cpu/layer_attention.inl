// The attention of one layer for all rows of a step: which memory each head of each sequence reads and
// writes. Threads share it by heads of a few decodes or of one prompt.

class LayerAttention {
public:
    // `streamed` says that states pass by the caches.
    LayerAttention(const Decoder &d, const Batch &b, const Layer &layer, const Projected &p,
                   const DecodeFeatures &features, bool streamed)
        : d_(d), b_(b), layer_(layer), p_(p), features_(features), streamed_(streamed) {}

    static PerThread<char> take_scratch(Arena &arena, const Decoder &d, int threads) {
        Arena one(nullptr);
        Scratch(one, d);
        return PerThread<char>::take(arena, one.used(), threads);
    }

    void run(Team &team, const PerThread<char> &memory) const {
        const int64_t blocks = (b_.num_decodes + kFeatureRows - 1) / kFeatureRows;
        team.for_each((blocks + b_.num_segments) * d_.num_kv_heads, [&](int64_t task, int member) {
            Arena own(memory.of(member));
            const Scratch scratch(own, d_);
            const int64_t i = task / d_.num_kv_heads, head = task % d_.num_kv_heads;
            if (i < blocks) {
                decode(i * kFeatureRows, head, scratch);
            } else {
                read_prompt(b_.segments[i - blocks], head, scratch);
            }
        });
    }

private:
    struct Scratch {
        HeadScratch head;
        WindowScratch window;

        Scratch(Arena &a, const Decoder &d) : head(a, d), window(a, d) {}
    };

    // kFeatureRows decodes at most.
    void decode(int64_t first, int64_t head, const Scratch &scratch) const {
        const int64_t decodes = b_.num_decodes, end = std::min(first + kFeatureRows, decodes);
        const HeadScratch &s = scratch.head;
        prepare_decodes(d_, layer_, p_, first, end, decodes, head, features_, s);
        if (d_.window > 0) {
            const auto cache_of = [&](int64_t row) { return cache(b_.source[row], head); };
            prepare_far_keys(d_, layer_, p_, first, end, decodes, head, cache_of, features_, s);
        } else {
            prepare_own_keys(d_, layer_, p_, first, end, decodes, head, features_, s);
        }
        for (int64_t row = first; row < end; ++row) {
            const int64_t source = b_.source[row], target = b_.target[row];
            const float *before = state(source, head);
            float *next = state(target, head);
            if (d_.window > 0) {
                step_windowed(d_, layer_, p_, row, decodes, head, features_, before, next,
                              cache(source, head), cache(target, head), pending(row, head), streamed_,
                              s, scratch.window);
            } else {
                step_decode(d_, layer_, p_, row, decodes, head, features_, before, next,
                            pending(row, head), streamed_, s);
            }
        }
        fence();
    }

    void read_prompt(const Segment &segment, int64_t head, const Scratch &scratch) const {
        const HeadScratch &s = scratch.head;
        const WindowScratch &w = scratch.window;
        const float *before = state(segment.source, head);
        float *next = state(segment.target, head);
        if (d_.window == 0) {
            const auto attend = [&](int64_t row, int64_t length) {
                attend_chunk(d_, layer_, p_, row, length, head, s);
            };
            attend_segment(d_, layer_, p_, segment, head, before, next, s, attend);
            return;
        }
        const auto attend = [&](int64_t row, int64_t length) {
            attend_windowed_chunk(d_, layer_, p_, row, length, head, s, w);
        };
        const int64_t start = b_.positions[segment.start];
        open_cache(d_, cache(segment.source, head), start, w);
        attend_segment(d_, layer_, p_, segment, head, before, next, s, attend);
        if (!close_cache(d_, w, start + segment.length, cache(segment.target, head))) {
            p_.spoil(segment.start);
        }
    }

    int64_t layer_index() const { return &layer_ - d_.layers; }

    float *state(int64_t row, int64_t head) const {
        const int64_t size = d_.num_features * d_.value_dim;
        return b_.states + layer_index() * b_.layer_stride + (row * d_.num_kv_heads + head) * size;
    }

    float *cache(int64_t row, int64_t head) const {
        const int64_t size = 2 * d_.cache_size(), place = row * d_.num_kv_heads + head;
        return b_.caches + layer_index() * b_.cache_layer_stride + place * size;
    }

    Pending pending(int64_t row, int64_t head) const {
        const int64_t place = b_.pending_rows[row] * d_.num_kv_heads + head;
        float *tokens =
            b_.pending + layer_index() * b_.pending_layer_stride + place * b_.pending_head_stride;
        return {tokens, b_.pending_counts[row], d_.num_features, d_.head_dim};
    }

    const Decoder &d_;
    const Batch &b_;
    const Layer &layer_;
    const Projected p_;
    const DecodeFeatures &features_;
    const bool streamed_;
};
