// Linear layer on int8 weights. Activations are quantised per row, as the mode says, and multiplied in integers:
//
//   v_mk = x_mk * x_multiplier_k                                   in float32; without a multiplier v is x
//   q_mk = round_half_even(v_mk * inverse_m), v = scale_m * q      the product not rounded before
//
//   kDynamic     q in [-127, 127]           inverse = 127 / absmax_k |v_mk|,  scale = absmax / 127
//   kAsymmetric  q in [-zero, 255 - zero]   inverse = 255 / range, scale = range / 255, zero = round(-min * inverse)
//                                           with min and max of the row and of 0; range = max - min
//   kStatic      q in [-zero, 255 - zero]   scale and zero given, inverse = 1 / scale: what lies outside is cut off
//   kInt16       q in [-32767, 32767]       inverse = 32767 / absmax, scale = absmax / 32767
//
//   a_mn = sum_k q_mk w_nk                  exact int32; kInt16: 256 float(sum_k (q >> 8) w) + float(sum_k (q & 255) w)
//   y_mn = activation(float(a_mn) * (scale_m * weight_scale_n) + bias_n + sum_j x_m,columns(j) * outlier_weight_jn)
//
// All but the last sum is float32 without contraction, so that every kernel gives the same bits (GELU and SiLU: the
// same to 1e-6). A row whose absmax (kAsymmetric: range) is under 2^-100 counts as zeros; one that holds a NaN or an
// infinity comes out as NaN, as does one whose range is infinite.
//
// Between two layers of kStatic the values can stay integers: x may be q + zero of the layer itself, and y what the
// layer that reads it would quantise it to, bit for bit.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "common/float_types.h"

namespace fastcl {

constexpr int64_t kInt8MaxDepth = 131072;         // 131072 * 127 * 128 < 2^31
constexpr int64_t kInt8MaxDepthUnsigned = 65536;  // of the other modes than kDynamic: 65536 * 255 * 128 < 2^31

enum class Activation { kNone, kRelu, kGelu, kSilu };
enum class Int8Mode { kDynamic, kAsymmetric, kStatic, kInt16 };

// A weight laid out for one kernel, in one block:
//   Int8PackedHeader | int32 sums of each row of the weight [n32] | int8 weight in the kernel's order [n32 * k16]
// and, where the block is of a whole layer,
//   float weight_scale [n32] | float x_multiplier [k16], if any | int64 outlier_columns [j] | float outlier_weight [j *
//   n]
// with n rounded up to 32 and k to 16; what is added is zero.
struct Int8PackedHeader {
  char kernel[16];  // its name, padded with zeros
  int64_t n;
  int64_t k;
  int64_t outliers;
  int32_t layer;  // 0: the weight alone, and nothing below has a meaning
  int32_t multiplied;
  int32_t mode;
  int32_t activation;
  float x_scale;
  int32_t x_zero;
};
static_assert(sizeof(Int8PackedHeader) == 64);

inline int64_t int8_padded_n(int64_t n) { return (n + 31) / 32 * 32; }
inline int64_t int8_padded_k(int64_t k) { return (k + 15) / 16 * 16; }
inline int64_t int8_packed_bytes(int64_t n, int64_t k) {
  return int64_t(sizeof(Int8PackedHeader)) + int8_padded_n(n) * (4 + int8_padded_k(k));
}
inline int64_t int8_packed_layer_bytes(int64_t n, int64_t k, bool multiplied, int64_t outliers) {
  return int8_packed_bytes(n, k) + 4 * int8_padded_n(n) + (multiplied ? 4 * int8_padded_k(k) : 0) +
         outliers * (8 + 4 * n);
}
template <class Byte>
auto* int8_packed_sums(Byte* block) {
  using Sum = std::conditional_t<std::is_const_v<Byte>, const int32_t, int32_t>;
  return reinterpret_cast<Sum*>(block + sizeof(Int8PackedHeader));
}
template <class Byte>
auto* int8_packed_weight(Byte* block, int64_t n) {
  using Weight = std::conditional_t<std::is_const_v<Byte>, const int8_t, int8_t>;
  return reinterpret_cast<Weight*>(block + sizeof(Int8PackedHeader) + 4 * int8_padded_n(n));
}

struct Int8PackWeight {
  const int8_t* weight;  // [n, k], contiguous
  int64_t n;
  int64_t k;
  uint8_t* packed;  // [int8_packed_bytes(n, k)], on a multiple of 64 bytes
};

struct Int8Patches;  // int8_conv2d.h

struct Int8Linear {
  const void* x;               // [m, k], of type `type`, contiguous; or, if x_quantized, uint8
  const Int8Patches* patches;  // null, or how the rows lie in x: then x is images
  FloatType type;              // of x and y, where they are not integers
  int64_t m;
  int64_t k;
  int64_t n;
  const uint8_t* packed;      // by the kernel that is to run
  const float* weight_scale;  // [n]
  const float* bias;          // [n], null: none
  Int8Mode mode;
  float x_scale;                   // of kStatic, positive
  int32_t x_zero;                  // of kStatic, 0 to 255
  const float* x_multiplier;       // [k], null: ones
  int64_t outliers;                // columns of x that are multiplied in float as well
  const int64_t* outlier_columns;  // [outliers], each 0 to k - 1
  const float* outlier_weight;     // [outliers, n]
  Activation activation;
  void* y;           // [m, n]
  bool x_quantized;  // x is q + x_zero; patches of kStatic, without multiplier and outliers
  bool y_quantized;  // y is uint8; the layer likewise
  float y_scale;     // of y's quantiser, a kStatic one
  int32_t y_zero;
};

// A kernel: its weight layout, and the product on it. All kernels give the same results.
struct Int8Kernel {
  const char* name;
  bool (*available)();                  // on this machine, within FASTCL_CPU
  void (*pack)(const Int8PackWeight&);  // adds sums and weight to a block of zeros that has its header
  bool (*linear)(const Int8Linear&);    // false: x holds a NaN or an infinity, and y, with y_quantized, nothing
};

// The kernel of that name, "auto" being the fastest available one; null where it is unknown or not available.
const Int8Kernel* int8_kernel(const std::string& name);
std::string int8_kernel_names();  // those available, for messages: "avx512_vnni, avx2, portable"

// Fills all of params.packed for one kernel; kernel.linear then runs on it.
void int8_pack_weight(const Int8Kernel& kernel, const Int8PackWeight& params);

// Makes a packed weight, in a block of int8_packed_layer_bytes, that of a layer: takes over from params all but x and
// y, its pointers then being the block's.
void int8_pack_layer(const Int8Linear& params, uint8_t* packed);
// The same but bias, back from such a block.
Int8Linear int8_packed_layer(const uint8_t* packed);

}  // namespace fastcl
