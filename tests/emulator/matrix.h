// ldmatrix and mma of a warp. Sums run in float32 in order of k; a device's order and rounding differ.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "machine.h"
#include "positions.h"

namespace fastcl::emulator {

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

struct Bf16 {
  static constexpr int kPerRegister = 2;
  using Value = float;
  static float value(unsigned bits, int element) { return bits_as<float>((bits >> (16 * element)) << 16); }
};
struct F16 {
  static constexpr int kPerRegister = 2;
  using Value = float;
  static float value(unsigned bits, int element) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits >> (16 * element))));
  }
};
struct Tf32 {
  static constexpr int kPerRegister = 1;
  using Value = float;
  // The tensor core does not look at the lowest 13 bits.
  static float value(unsigned bits, int) { return bits_as<float>(bits & 0xFFFFE000u); }
};
struct S8 {
  static constexpr int kPerRegister = 4;
  using Value = int;
  static int value(unsigned bits, int element) { return static_cast<int8_t>(bits >> (8 * element)); }
};

// Of kRows x 8 x kDepth.
template <class Type, int kRows, int kDepth>
struct Mma {
  static constexpr int kE = Type::kPerRegister;
  static constexpr int kARegisters = kRows * kDepth / 32 / kE, kBRegisters = kDepth * 8 / 32 / kE,
                       kValues = kRows * 8 / 32;
  using Value = typename Type::Value;
  struct In {
    unsigned a[kARegisters], b[kBRegisters];
    Value c[kValues];
  };
  static_assert(sizeof(In) <= kLaneBytes);

  static FASTCL_EMULATOR_UNSEEN void multiply(Exchange& exchange, unsigned mask) {
    if (mask != ~0u) fail("mma: not all 32 lanes take part");
    Value a[kRows][kDepth], b[kDepth][8], c[kRows][8];
    for (int lane = 0; lane < 32; ++lane) {
      In in;
      std::memcpy(&in, exchange.in[lane], sizeof in);
      for (int r = 0; r < kARegisters; ++r)
        for (int e = 0; e < kE; ++e) {
          // Eight rows have no second half.
          const Position at = a_position<kE>(lane, kRows == 8 ? 2 * r : r, e);
          a[at.row][at.column] = Type::value(in.a[r], e);
        }
      for (int r = 0; r < kBRegisters; ++r)
        for (int e = 0; e < kE; ++e) {
          const Position at = b_position<kE>(lane, r, e);
          b[at.row][at.column] = Type::value(in.b[r], e);
        }
      for (int v = 0; v < kValues; ++v) {
        const Position at = c_position(lane, v);
        c[at.row][at.column] = in.c[v];
      }
    }
    using Sum = std::conditional_t<std::is_same_v<Value, int>, unsigned, float>;  // int32 wraps around
    for (int i = 0; i < kRows; ++i)
      for (int k = 0; k < kDepth; ++k)
        for (int j = 0; j < 8; ++j)
          c[i][j] = static_cast<Value>(static_cast<Sum>(c[i][j]) + static_cast<Sum>(a[i][k] * b[k][j]));
    for (int lane = 0; lane < 32; ++lane)
      for (int v = 0; v < kValues; ++v) {
        const Position at = c_position(lane, v);
        std::memcpy(exchange.out[lane] + v * sizeof(Value), &c[at.row][at.column], sizeof(Value));
      }
    ++statistics().mma;
  }

  // d += a * b; `d` may be given as the bits of its values.
  template <class D>
  static void run(D* d, const unsigned* a, const unsigned* b, const char* name, Location location) {
    static_assert(sizeof(D) == sizeof(Value));
    In in;
    std::memcpy(in.a, a, sizeof in.a);
    std::memcpy(in.b, b, sizeof in.b);
    std::memcpy(in.c, d, sizeof in.c);
    collective(name, 0, ~0u, multiply, &in, sizeof in, d, sizeof in.c, location);
  }
};

template <int kMatrices, bool kTransposed>
FASTCL_EMULATOR_UNSEEN void load_matrices(Exchange& exchange, unsigned mask) {
  if (mask != ~0u) fail("ldmatrix: not all 32 lanes take part");
  const unsigned char* rows[32];
  for (int lane = 0; lane < kMatrices * 8; ++lane) {
    std::memcpy(&rows[lane], exchange.in[lane], sizeof rows[lane]);
    if (reinterpret_cast<uintptr_t>(rows[lane]) % 16) fail("ldmatrix: a row is not 16-byte aligned");
  }
  for (int matrix = 0; matrix < kMatrices; ++matrix) {
    // 32 banks of 4 bytes: rows that start at the same address modulo 128 wait for each other.
    int rows_in_banks[8] = {}, turns = 1;
    for (int row = 0; row < 8; ++row) {
      int& count = rows_in_banks[reinterpret_cast<uintptr_t>(rows[matrix * 8 + row]) / 16 % 8];
      bool seen = false;  // two lanes that name the same row share it
      for (int before = 0; before < row; ++before) seen |= rows[matrix * 8 + before] == rows[matrix * 8 + row];
      if (!seen) turns = ++count > turns ? count : turns;
    }
    ++statistics().ldmatrix_phases;
    statistics().ldmatrix_conflicts += turns - 1;
    for (int lane = 0; lane < 32; ++lane)
      for (int half = 0; half < 2; ++half) {
        const Position at = ldmatrix_position(lane, half, kTransposed);
        std::memcpy(exchange.out[lane] + 4 * matrix + 2 * half, rows[matrix * 8 + at.row] + 2 * at.column, 2);
      }
  }
}

template <int kMatrices, bool kTransposed>
void ldmatrix(unsigned* registers, const void* row, Location location) {
  if (lane() < kMatrices * 8) tsan_read(row, 16);
  collective("ldmatrix", kMatrices * 2 + kTransposed, ~0u, load_matrices<kMatrices, kTransposed>, &row, sizeof row,
             registers, 4 * kMatrices, location);
}

}  // namespace fastcl::emulator
