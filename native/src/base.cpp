// What does not depend on an instruction set: which sets there are, and the team of threads.
//
// Compiled without a set's flags, so that any processor of the platform may run it. Sets are bits, in the
// order avx2 = 1, avx512bf16 = 2, amx = 4.
//
// Threads are those of the OpenMP runtime that torch has loaded already: its GOMP_parallel is handed in, and
// nothing is linked, since a second runtime in the process would be a second team that waits for the same cores.
#include "team.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define LK_API extern "C" __attribute__((visibility("default")))

namespace {

typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);

struct Team {
  Parallel parallel;
  int (*thread)();
  int (*threads)();
  unsigned wanted;
} team = {nullptr, nullptr, nullptr, 1};

struct Call {
  lk_body body;
  void* argument;
};

void enter(void* call) {
  const Call* c = static_cast<const Call*>(call);
  c->body(c->argument, team.thread(), team.threads());
}

enum { AVX2 = 1, AVX512BF16 = 2, AMX = 4 };

#if defined(__x86_64__)
unsigned long long saved_registers() {  // XCR0: which registers the system keeps for a process
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<unsigned long long>(high) << 32 | low;
}

bool bit(unsigned word, int n) { return word >> n & 1; }

// Linux hands out tile registers on demand (Documentation/arch/x86/xstate.rst): ARCH_REQ_XCOMP_PERM, 18.
bool may_use_tiles() {
#if defined(__linux__)
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}
#endif

}  // namespace

// Sets that this processor, its system and its leave for tiles allow.
LK_API unsigned lk_machine_sets() {
  unsigned sets = 0;
#if defined(__x86_64__)
  unsigned a, b, c, d, b7, c7, d7, a71 = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return 0;  // OSXSAVE
  const bool fma = bit(c, 12) && bit(c, 29);  // and float16 (F16C)
  const unsigned long long kept = saved_registers();
  unsigned most;
  if (!__get_cpuid_count(7, 0, &most, &b7, &c7, &d7)) return 0;
  if (most >= 1) __get_cpuid_count(7, 1, &a71, &b, &c, &d);
  if (fma && bit(b7, 5) && (kept & 0x6) == 0x6) sets |= AVX2;
  const bool avx512 = bit(b7, 16) && bit(b7, 17) && bit(b7, 30) && bit(b7, 31);  // F, DQ, BW, VL
  if ((sets & AVX2) && avx512 && bit(a71, 5) && (kept & 0xe6) == 0xe6) sets |= AVX512BF16;
  const bool tiles = bit(d7, 24) && bit(d7, 22);  // AMX-TILE, AMX-BF16
  if ((sets & AVX512BF16) && tiles && (kept & 0x60000) == 0x60000 && may_use_tiles()) sets |= AMX;
#endif
  return sets;
}

// Whether this processor has AVX512, in whatever form: there torch's own products are wider than AVX2's.
LK_API int lk_machine_has_avx512() {
#if defined(__x86_64__)
  unsigned a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) return bit(b, 16);
#endif
  return 0;
}

// Whether AMD made it: kernels/native.py says why that matters.
LK_API int lk_machine_is_amd() {
#if defined(__x86_64__)
  unsigned a, b, c, d;
  if (__get_cpuid(0, &a, &b, &c, &d)) return b == signature_AMD_ebx && c == signature_AMD_ecx && d == signature_AMD_edx;
#endif
  return 0;
}

// What functions take, as a number; it grows with every change of a signature. kernels/native.py has the same.
enum { LK_CALLS = 3 };
LK_API int lk_calls() { return LK_CALLS; }

// Sets that are compiled into this library.
LK_API unsigned lk_built_sets() {
  unsigned sets = 0;
#if defined(LK_BUILT_avx2)
  sets |= AVX2;
#endif
#if defined(LK_BUILT_avx512bf16)
  sets |= AVX512BF16;
#endif
#if defined(LK_BUILT_amx)
  sets |= AMX;
#endif
  return sets;
}

// Take the functions of an OpenMP runtime; without them everything runs in the caller's thread.
// threads: of a region; 0 for as many as omp_set_num_threads, and so torch, set for the calling thread.
LK_API void lk_init(void* gomp_parallel, void* omp_get_thread_num, void* omp_get_num_threads, unsigned threads) {
  team.parallel = reinterpret_cast<Parallel>(gomp_parallel);
  team.thread = reinterpret_cast<int (*)()>(omp_get_thread_num);
  team.threads = reinterpret_cast<int (*)()>(omp_get_num_threads);
  team.wanted = threads;
}

void lk_parallel(lk_body body, void* argument) {
  if (!team.parallel || team.wanted == 1) return body(argument, 0, 1);
  Call call = {body, argument};
  team.parallel(enter, &call, team.wanted, 0);
}
