#include "team.h"

#include <chrono>
#include <thread>

namespace dijiang {

namespace {

// Longer than what lies between two calls of one step, much shorter than a pause in the service.
constexpr std::chrono::microseconds kAwake{150};
constexpr int kSpins = 4000;

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

}  // namespace

Team::Team(int size) : size_(size) {
    for (int member = 1; member < size; ++member) std::thread(&Team::work, this, member).detach();
}

void Team::start(Job job, void *body) {
    {
        std::lock_guard<std::mutex> lock(sleeping_);
        job_ = job;
        body_ = body;
        num_jobs_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
}

void Team::work(int member) {
    for (uint64_t done = 0;;) {
        done = wait_for_job(done);
        job_(body_, member);
        barrier();
    }
}

uint64_t Team::wait_for_job(uint64_t last) {
    const auto deadline = std::chrono::steady_clock::now() + kAwake;
    while (std::chrono::steady_clock::now() < deadline) {
        for (int i = 0; i < 64; ++i) {
            const uint64_t now = num_jobs_.load(std::memory_order_acquire);
            if (now != last) return now;
            relax();
        }
    }
    std::unique_lock<std::mutex> lock(sleeping_);
    wake_.wait(lock, [&] { return num_jobs_.load(std::memory_order_relaxed) != last; });
    return num_jobs_.load(std::memory_order_relaxed);
}

void Team::barrier() {
    if (size_ == 1) return;
    const uint64_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        arrived_.store(0, std::memory_order_relaxed);
        next_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    // A thread that has lost its core must be let on it again: spin a little, then give way.
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
        if (spins < kSpins) {
            relax();
        } else {
            std::this_thread::yield();
        }
    }
}

}  // namespace dijiang
