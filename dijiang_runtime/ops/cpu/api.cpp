// The functions that Python calls, through ctypes. Handles are pointers that Python keeps.

#include <mutex>
#include <vector>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "team.h"
#include "types.h"
#include "workspace.h"

using namespace dijiang;

namespace {

#if defined(__x86_64__) && defined(__linux__)
// Whether the processor has tiles of int8 and bfloat16 (AMX), and the system lets this process use
// them. Linux wants to be asked, once, before it keeps 8 KiB more for each thread.
bool ask_for_tiles() {
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kAll = kBf16 | kTile | kInt8;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAll) != kAll) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool ask_for_tiles() { return false; }
#endif

bool may_use_tiles() {
    static const bool answer = ask_for_tiles();
    return answer;
}

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
    const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
    offer(kAmx, bf16 && may_use_tiles());
    offer(kAvx512Bf16, bf16);
    offer(kAvx512Vnni, vnni);
    offer(kAvx512, avx512);
    offer(kAvx2, avx2);
#endif
    offer(kPortable, true);
    // Never the best: it stands for AMX where there is none.
    offer(kPortableTiles, true);
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

// The logits [rows, vocabulary] of the chosen rows of x [*, in_features], what is asked of their panels,
// and of each row whether they are finite and which is the largest, the first among equals.
void dijiang_logits(Context *c, const Matrix *m, const float *x, const int64_t *chosen, int64_t rows,
                    int64_t in_features, float *out, const Panels *panels, uint8_t *finite,
                    int64_t *likeliest) {
    const Turn turn(c->team.one_at_a_time());
    c->kernels.logits(c->team, c->workspace, *m, x, chosen, rows, in_features, out, *panels, finite,
                      likeliest);
}

void dijiang_forward(Context *c, const Decoder *decoder, const Batch *batch) {
    const Turn turn(c->team.one_at_a_time());
    c->kernels.forward(c->team, c->workspace, *decoder, *batch);
}

void dijiang_recurrent_step(Context *c, const RecurrentStep *step) {
    const Turn turn(c->team.one_at_a_time());
    c->kernels.recurrent_step(c->team, *step);
}

// tokens[i] is drawn as draws[i] says, from that row of logits [*, vocab_size]. Of the panels is
// known what dijiang_logits has found; dijiang_adjust keeps it up to date.
void dijiang_draw(Context *c, const float *logits, const Panels *panels, int64_t vocab_size,
                  const Draw *draws, int64_t num_draws, int64_t *tokens) {
    const Turn turn(c->team.one_at_a_time());
    c->kernels.draw(c->team, c->workspace, logits, *panels, vocab_size, draws, num_draws, tokens);
}

void dijiang_logprobs(Context *c, const LogprobQuery *query) {
    const Turn turn(c->team.one_at_a_time());
    c->kernels.logprobs(c->team, c->workspace, *query);
}

// Of each row of x [num_rows, n]: whether it is finite, and which is the largest number, the first
// among equals.
void dijiang_scan_rows(Context *c, const float *x, int64_t num_rows, int64_t n, uint8_t *finite,
                       int64_t *likeliest) {
    const Turn turn(c->team.one_at_a_time());
    c->kernels.scan_rows(c->team, x, num_rows, n, finite, likeliest);
}

// Rows of logits [*, vocab_size] in place, and of each of them the likeliest token.
void dijiang_adjust(Context *c, float *logits, const Panels *panels, int64_t vocab_size,
                    const Adjustment *adjustments, int64_t count, int64_t *likeliest) {
    const Turn turn(c->team.one_at_a_time());
    c->kernels.adjust(c->team, c->workspace, logits, *panels, vocab_size, adjustments, count, likeliest);
}

}  // extern "C"
