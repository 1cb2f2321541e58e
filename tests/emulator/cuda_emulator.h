// CUDA for g++: what csrc/common/cuda/launch.h includes instead of nvcc's headers when -DFASTCL_EMULATED. The types and
// the conversions are CUDA's own headers'; the built-ins run on machine.h. Only what kernels here use is there: a
// built-in that is missing does not compile, and is then added.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "machine.h"

// ---- the language ----

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ use_FASTCL_SHARED_instead
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

#define threadIdx (::fastcl::emulator::thread_index())
#define blockIdx (::fastcl::emulator::block_index())
#define blockDim (::fastcl::emulator::block_size())
#define gridDim (::fastcl::emulator::grid_size())

#define FASTCL_SHARED(type, name, dims)                         \
  using name##_shared_type = type dims;                         \
  static const char name##_shared_key = 0;                      \
  name##_shared_type& name = *static_cast<name##_shared_type*>( \
      ::fastcl::emulator::shared_variable(&name##_shared_key, sizeof(name##_shared_type), #name))
#define FASTCL_DYNAMIC_SHARED(name) unsigned char* const name = ::fastcl::emulator::dynamic_shared()

// ---- launches and the runtime; macros, since PyTorch may have brought the real functions into the process ----

namespace fastcl::emulator {

FASTCL_EMULATOR_API cudaError_t device_attribute(int* value, cudaDeviceAttr attribute);

inline cudaError_t memset_async(void* data, int value, std::size_t bytes, cudaStream_t = nullptr) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}

inline cudaError_t memcpy_async(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t = nullptr) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

}  // namespace fastcl::emulator

#define cudaMemsetAsync ::fastcl::emulator::memset_async
#define cudaMemcpyAsync ::fastcl::emulator::memcpy_async

namespace fastcl::cuda {

using Stream = cudaStream_t;

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw emulator::Error(std::string("CUDA: ") + what + ": error " + std::to_string(error));
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int value = 0;
  check(emulator::device_attribute(&value, attribute), "cudaDeviceGetAttribute");
  return value;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, Stream,
            Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  Call call{kernel, {static_cast<Parameters>(arguments)...}};
  // First the call itself, then the address of each argument as a translated kernel wants them.
  const void* pointers[1 + sizeof...(Parameters)] = {&call};
  std::size_t next = 1;
  std::apply([&](const auto&... argument) { ((pointers[next++] = &argument), ...); }, call.arguments);
  const auto run = [](const emulator::Launch& launch) {
    const auto& self = *static_cast<const Call*>(launch.arguments[-1]);
    std::apply(self.kernel, self.arguments);
  };
  emulator::run({reinterpret_cast<const void*>(kernel), run, pointers + 1, grid, block, shared_bytes});
}

}  // namespace fastcl::cuda

// ---- barriers, votes, shuffles ----

inline void __syncthreads(FASTCL_EMULATOR_HERE) { ::fastcl::emulator::barrier(0, false, location); }
inline int __syncthreads_or(int vote, FASTCL_EMULATOR_HERE) {
  return ::fastcl::emulator::barrier(0, vote != 0, location).any;
}
inline int __syncthreads_and(int vote, FASTCL_EMULATOR_HERE) {
  return ::fastcl::emulator::barrier(0, vote != 0, location).all;
}
inline int __syncthreads_count(int vote, FASTCL_EMULATOR_HERE) {
  return ::fastcl::emulator::barrier(0, vote != 0, location).count;
}
inline void __syncwarp(unsigned mask = ~0u, FASTCL_EMULATOR_HERE) { ::fastcl::emulator::sync_warp(mask, location); }

namespace fastcl::emulator {

// A lane that nobody may read gives garbage.
struct Shuffle {
  uint64_t value;
  int source;
};
FASTCL_EMULATOR_API void exchange_shuffle(Exchange& exchange, unsigned mask);
FASTCL_EMULATOR_API void exchange_ballot(Exchange& exchange, unsigned mask);
FASTCL_EMULATOR_API void exchange_match(Exchange& exchange, unsigned mask);

template <class T>
T shuffle(const char* name, unsigned mask, T value, int source, Location location) {
  static_assert(sizeof(T) <= 8);
  Shuffle in{0, source};
  std::memcpy(&in.value, &value, sizeof value);
  uint64_t out;
  collective(name, sizeof(T), mask, exchange_shuffle, &in, sizeof in, &out, sizeof out, location);
  std::memcpy(&value, &out, sizeof value);
  return value;
}

inline unsigned ballot(const char* name, unsigned mask, bool vote, Location location) {
  unsigned votes;
  collective(name, 0, mask, exchange_ballot, &vote, sizeof vote, &votes, sizeof votes, location);
  return votes;
}

template <class T, class Combine>
FASTCL_EMULATOR_UNSEEN void exchange_reduce(Exchange& exchange, unsigned mask) {
  T sum{};
  bool first = true;
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) {
      T value;
      std::memcpy(&value, exchange.in[i], sizeof value);
      sum = first ? value : static_cast<T>(Combine()(sum, value));
      first = false;
    }
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) std::memcpy(exchange.out[i], &sum, sizeof sum);
}

template <class Combine, class T>
T reduce(const char* name, unsigned mask, T value, Location location) {
  static_assert(sizeof(T) == 4 && std::is_integral_v<T>, "__reduce_*_sync takes int or unsigned");
  collective(name, std::is_signed_v<T>, mask, exchange_reduce<T, Combine>, &value, sizeof value, &value, sizeof value,
             location);
  return value;
}

struct Least {
  template <class T>
  T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Greatest {
  template <class T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

}  // namespace fastcl::emulator

// The source lane stays inside the caller's segment of `width` lanes; where it would not, the caller's own value comes
// back.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, FASTCL_EMULATOR_HERE) {
  const int lane = ::fastcl::emulator::lane();
  return ::fastcl::emulator::shuffle("__shfl_sync", mask, value, (lane & ~(width - 1)) | (source & (width - 1)),
                                     location);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, FASTCL_EMULATOR_HERE) {
  const int lane = ::fastcl::emulator::lane(), source = lane ^ lane_mask;
  return ::fastcl::emulator::shuffle("__shfl_xor_sync", mask, value,
                                     source < (lane & ~(width - 1)) + width ? source : lane, location);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTCL_EMULATOR_HERE) {
  const int lane = ::fastcl::emulator::lane(), source = lane + static_cast<int>(delta);
  return ::fastcl::emulator::shuffle("__shfl_down_sync", mask, value,
                                     source < (lane & ~(width - 1)) + width ? source : lane, location);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTCL_EMULATOR_HERE) {
  const int lane = ::fastcl::emulator::lane(), source = lane - static_cast<int>(delta);
  return ::fastcl::emulator::shuffle("__shfl_up_sync", mask, value, source < (lane & ~(width - 1)) ? lane : source,
                                     location);
}
inline unsigned __ballot_sync(unsigned mask, int vote, FASTCL_EMULATOR_HERE) {
  return ::fastcl::emulator::ballot("__ballot_sync", mask, vote != 0, location);
}
inline int __any_sync(unsigned mask, int vote, FASTCL_EMULATOR_HERE) {
  return ::fastcl::emulator::ballot("__any_sync", mask, vote != 0, location) != 0;
}
inline int __all_sync(unsigned mask, int vote, FASTCL_EMULATOR_HERE) {
  return ::fastcl::emulator::ballot("__all_sync", mask, vote == 0, location) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, FASTCL_EMULATOR_HERE) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  unsigned lanes;
  ::fastcl::emulator::collective("__match_any_sync", sizeof(T), mask, ::fastcl::emulator::exchange_match, &bits,
                                 sizeof bits, &lanes, sizeof lanes, location);
  return lanes;
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, FASTCL_EMULATOR_HERE) {
  return static_cast<T>(::fastcl::emulator::reduce<std::plus<unsigned>>("__reduce_add_sync", mask, value, location));
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, FASTCL_EMULATOR_HERE) {
  return ::fastcl::emulator::reduce<::fastcl::emulator::Least>("__reduce_min_sync", mask, value, location);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, FASTCL_EMULATOR_HERE) {
  return ::fastcl::emulator::reduce<::fastcl::emulator::Greatest>("__reduce_max_sync", mask, value, location);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, FASTCL_EMULATOR_HERE) {
  return ::fastcl::emulator::reduce<std::bit_or<unsigned>>("__reduce_or_sync", mask, value, location);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, FASTCL_EMULATOR_HERE) {
  return ::fastcl::emulator::reduce<std::bit_and<unsigned>>("__reduce_and_sync", mask, value, location);
}

// ---- memory ----

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldca(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, std::type_identity_t<T> value) {
  *p = value;
}
template <class T>
void __stcs(T* p, std::type_identity_t<T> value) {
  *p = value;
}

inline void __threadfence() { ::fastcl::emulator::fence(); }
inline void __threadfence_block() { ::fastcl::emulator::fence(); }

namespace fastcl::emulator {

// Replaces *p by change(*p), gives what was there.
template <class T, class Change>
T atomic(T* p, Change change) {
  before_atomic(p);
  T before = __atomic_load_n(p, __ATOMIC_RELAXED);
  T after = change(before);
  // One thread of the operating system: nothing comes between. The atomic accesses are for TSan.
  __atomic_store_n(p, after, __ATOMIC_RELAXED);
  after_atomic(p);
  return before;
}
template <class Change>
float atomic(float* p, Change change) {
  const int before = atomic(reinterpret_cast<int*>(p), [&](int bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    value = change(value);
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
  });
  float value;
  std::memcpy(&value, &before, sizeof value);
  return value;
}

}  // namespace fastcl::emulator

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
  return ::fastcl::emulator::atomic(p, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicSub(T* p, std::type_identity_t<T> value) {
  return ::fastcl::emulator::atomic(p, [=](T old) { return static_cast<T>(old - value); });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> value) {
  return ::fastcl::emulator::atomic(p, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> value) {
  return ::fastcl::emulator::atomic(p, [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> value) {
  return ::fastcl::emulator::atomic(p, [=](T) { return value; });
}
template <class T>
T atomicAnd(T* p, std::type_identity_t<T> value) {
  return ::fastcl::emulator::atomic(p, [=](T old) { return static_cast<T>(old & value); });
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> value) {
  return ::fastcl::emulator::atomic(p, [=](T old) { return static_cast<T>(old | value); });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return ::fastcl::emulator::atomic(p, [=](T old) { return old == expected ? value : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  return ::fastcl::emulator::atomic(p, [=](unsigned old) { return old >= limit ? 0u : old + 1; });
}

// ---- arithmetic ----

namespace fastcl::emulator {

// Subnormal numbers as zero.
inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }

// Nearest number with 10 bits of mantissa, ties away from zero.
inline unsigned round_to_tf32(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7F800000u) == 0x7F800000u) return bits & 0x007FFFFFu ? 0x7FFFFFFFu : bits;
  return (bits + 0x1000u) & 0xFFFFE000u;
}

}  // namespace fastcl::emulator

// The fast functions, here exact ones; macros, since glibc declares functions of these names.
#define __expf(x) std::exp(static_cast<float>(x))
#define __exp10f(x) std::pow(10.f, static_cast<float>(x))
#define __logf(x) std::log(static_cast<float>(x))
#define __log2f(x) std::log2(static_cast<float>(x))
#define __log10f(x) std::log10(static_cast<float>(x))
#define __sinf(x) std::sin(static_cast<float>(x))
#define __cosf(x) std::cos(static_cast<float>(x))
#define __tanf(x) std::tan(static_cast<float>(x))
#define __powf(x, y) std::pow(static_cast<float>(x), static_cast<float>(y))

inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1. / std::sqrt(static_cast<double>(x))); }
inline float __frcp_rn(float x) { return 1.f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __saturatef(float x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }  // NaN becomes 0

namespace fastcl::emulator {

// As cvt does: saturating, NaN to zero.
template <class To>
To to_integer(double x) {
  if (x != x) return 0;
  constexpr double low = static_cast<double>(std::numeric_limits<To>::min());
  constexpr double high = static_cast<double>(std::numeric_limits<To>::max());
  return x <= low ? std::numeric_limits<To>::min() : x >= high ? std::numeric_limits<To>::max() : static_cast<To>(x);
}

}  // namespace fastcl::emulator

inline int __float2int_rn(float x) { return ::fastcl::emulator::to_integer<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return ::fastcl::emulator::to_integer<int>(std::trunc(x)); }
inline int __float2int_rd(float x) { return ::fastcl::emulator::to_integer<int>(std::floor(x)); }
inline int __float2int_ru(float x) { return ::fastcl::emulator::to_integer<int>(std::ceil(x)); }
inline unsigned __float2uint_rn(float x) { return ::fastcl::emulator::to_integer<unsigned>(std::nearbyint(x)); }
inline unsigned __float2uint_rz(float x) { return ::fastcl::emulator::to_integer<unsigned>(std::trunc(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

namespace fastcl::emulator {
template <class To, class From>
To reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace fastcl::emulator

inline int __float_as_int(float x) { return ::fastcl::emulator::reinterpret<int>(x); }
inline unsigned __float_as_uint(float x) { return ::fastcl::emulator::reinterpret<unsigned>(x); }
inline float __int_as_float(int x) { return ::fastcl::emulator::reinterpret<float>(x); }
inline float __uint_as_float(unsigned x) { return ::fastcl::emulator::reinterpret<float>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<int64_t>(a) * b >> 32); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = a | static_cast<uint64_t>(b) << 32;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned select = selector >> (4 * i);
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (select & 7))) & 0xFFu;
    if (select & 8) byte = byte & 0x80u ? 0xFFu : 0u;
    result |= byte << (8 * i);
  }
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline int __dp4a(int a, int b, int c) {
  unsigned sum = static_cast<unsigned>(c);
  for (int i = 0; i < 4; ++i)
    sum += static_cast<unsigned>(static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i)));
  return static_cast<int>(sum);
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long min(long a, long b) { return a < b ? a : b; }
inline long max(long a, long b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }

inline void __trap() { ::fastcl::emulator::fail("__trap"); }
