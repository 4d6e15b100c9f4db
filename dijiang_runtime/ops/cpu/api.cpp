// The functions that Python calls, through ctypes. Handles are pointers that Python keeps.

#include <cstring>
#include <mutex>
#include <vector>

#include "team.h"
#include "types.h"
#include "workspace.h"

using namespace dijiang;

namespace {

// Best first.
std::vector<const Kernels *> runnable() {
    std::vector<const Kernels *> found;
    const auto offer = [&](const Kernels *kernels, bool runs) {
        if (kernels != nullptr && runs) found.push_back(kernels);
    };
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    offer(kAvx512Bf16, vnni && __builtin_cpu_supports("avx512bf16"));
    offer(kAvx512Vnni, vnni);
    offer(kAvx512, avx512);
    offer(kAvx2, avx2);
#endif
    offer(kPortable, true);
    return found;
}

// Kernels, the threads that run them and the memory that they work in.
struct Context {
    const Kernels &kernels;
    Team &team;
    Workspace workspace;
};

// Calls that share a team take turns.
using Turn = std::lock_guard<std::mutex>;

}  // namespace

extern "C" {

// The name of the i-th best target that this processor runs, or null.
const char *dijiang_target(int64_t i) {
    const auto targets = runnable();
    return i < static_cast<int64_t>(targets.size()) ? targets[i]->name : nullptr;
}

// A team lives as long as the process.
Team *dijiang_team(int64_t num_threads) { return new Team(static_cast<int>(num_threads)); }

Context *dijiang_context(int64_t target, Team *team) {
    return new Context{*runnable()[target], *team, {}};
}

void dijiang_free_context(Context *context) { delete context; }

// out [rows, columns] = x [rows, in_features] Wᵀ + bias
void dijiang_multiply(Context *c, const Matrix *m, const float *x, int64_t rows, int64_t in_features,
                      float *out) {
    const Turn turn(c->team.one_at_a_time());
    c->kernels.multiply(c->team, c->workspace, *m, x, rows, in_features, out);
}

void dijiang_forward(Context *c, const Decoder *decoder, const Batch *batch) {
    const Turn turn(c->team.one_at_a_time());
    c->kernels.forward(c->team, c->workspace, *decoder, *batch);
}

void dijiang_recurrent_step(Context *c, const RecurrentStep *step) {
    const Turn turn(c->team.one_at_a_time());
    c->kernels.recurrent_step(c->team, *step);
}

// tokens[i] is drawn as draws[i] says, from that row of logits [*, vocab_size].
void dijiang_draw(Context *c, const float *logits, int64_t vocab_size, const Draw *draws,
                  int64_t num_draws, int64_t *tokens) {
    const Turn turn(c->team.one_at_a_time());
    c->kernels.draw(c->team, c->workspace, logits, vocab_size, draws, num_draws, tokens);
}

void dijiang_logprobs(Context *c, const LogprobQuery *query) {
    const Turn turn(c->team.one_at_a_time());
    c->kernels.logprobs(c->team, c->workspace, *query);
}

void dijiang_scan_rows(Context *c, const float *x, const int64_t *rows, int64_t num_rows, int64_t n,
                       uint8_t *finite, int64_t *likeliest) {
    const Turn turn(c->team.one_at_a_time());
    c->kernels.scan_rows(c->team, x, rows, num_rows, n, finite, likeliest);
}

// logits [vocab_size], in place.
void dijiang_penalise(Context *c, float *logits, const Penalties *penalties) {
    c->kernels.penalise(logits, *penalties);
}

// logits [vocab_size], in place. One bit for each token, the first in the lowest.
void dijiang_mask(Context *c, float *logits, int64_t vocab_size, const uint32_t *bits) {
    c->kernels.mask(logits, vocab_size, bits);
}

// Run products of registers alone; returns the number of multiply-and-adds.
int64_t dijiang_peak(Context *c, int64_t format, int64_t repeats) {
    const Turn turn(c->team.one_at_a_time());
    c->kernels.peak(c->team, format, repeats);
    const int64_t per_lane = format == kInt8 ? 4 : format == kBFloat16 ? 2 : 1;
    return repeats * c->kernels.peak_vectors * kLanes * per_lane * c->team.size();
}

}  // extern "C"
