// What every target_*.cpp includes before it selects its instructions: code that is compiled from
// here must run on any processor.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <type_traits>

#include "candidates.h"
#include "team.h"
#include "types.h"
#include "workspace.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define DIJIANG_X86 1
#include <immintrin.h>
#else
#define DIJIANG_X86 0
#endif
