#include "team.h"

#include <chrono>
#include <thread>

namespace dijiang {

namespace {

// Longer than what lies between two calls of one step, much shorter than a pause in the service.
constexpr std::chrono::microseconds kAwake{150};
constexpr int kSpins = 4000;
constexpr uint64_t kIndexMask = 0xffffffff;

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

}  // namespace

Team::Team(int size) : size_(size) {
    for (int member = 1; member < size; ++member) std::thread(&Team::help, this, member).detach();
}

void Team::share_out(int64_t count, Part part, void *function) {
    // Close the last round: whoever still looks at it must not measure it by the next one's count.
    const uint64_t last = ticket_.load(std::memory_order_relaxed) >> 32;
    ticket_.store(last << 32 | kIndexMask);
    count_.store(static_cast<uint64_t>(count), std::memory_order_release);
    part_.store(part, std::memory_order_release);
    function_.store(function, std::memory_order_release);
    num_done_.store(0, std::memory_order_relaxed);
    ticket_.store((last + 1) << 32);
    if (num_asleep_.load() > 0) {
        std::lock_guard<std::mutex> lock(sleeping_);
        wake_.notify_all();
    }
    while (take_one(0)) {
    }
    // A helper that has lost its core must be let on it again: spin a little, then give way.
    for (int spins = 0; num_done_.load(std::memory_order_acquire) < count; ++spins) {
        spins < kSpins ? relax() : std::this_thread::yield();
    }
}

bool Team::take_one(int member) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (;;) {
        if ((ticket & kIndexMask) >= count_.load(std::memory_order_acquire)) return false;
        const Part part = part_.load(std::memory_order_acquire);
        void *function = function_.load(std::memory_order_acquire);
        if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                           std::memory_order_acquire)) {
            continue;
        }
        part(function, static_cast<int64_t>(ticket & kIndexMask), member);
        num_done_.fetch_add(1, std::memory_order_release);
        return true;
    }
}

void Team::help(int member) {
    for (;;) {
        const auto deadline = std::chrono::steady_clock::now() + kAwake;
        bool found = false;
        while (!found && std::chrono::steady_clock::now() < deadline) {
            for (int i = 0; i < 64 && !found; ++i) {
                found = take_one(member);
                if (!found) relax();
            }
        }
        if (!found) sleep();
    }
}

void Team::sleep() {
    std::unique_lock<std::mutex> lock(sleeping_);
    // Counted before the look at the ticket, as the caller writes the ticket before it looks here.
    num_asleep_.fetch_add(1);
    const uint64_t ticket = ticket_.load();
    if ((ticket & kIndexMask) >= count_.load()) {
        wake_.wait(lock, [&] { return ticket_.load() >> 32 != ticket >> 32; });
    }
    num_asleep_.fetch_sub(1);
}

}  // namespace dijiang
