#include "int8_linear/int8_linear_cpu.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <vector>

#include "common/memory.h"
#include "common/parallel.h"
#include "int8_linear/int8_linear_math.h"

namespace fastcl {
namespace {

constexpr int64_t kRows = 16, kColumns = 64;  // of the output, one task

// Packed for this kernel: rows [n32, k16], as they stand.
void pack_portable(const Int8PackWeight& p) {
  const int64_t k16 = int8_padded_k(p.k);
  int32_t* sums = int8_packed_sums(p.packed);
  int8_t* rows = int8_packed_weight(p.packed, p.n);
  for (int64_t n = 0; n < p.n; ++n) {
    std::memcpy(rows + n * k16, p.weight + n * p.k, size_t(p.k));
    for (int64_t k = 0; k < p.k; ++k) sums[n] += p.weight[n * p.k + k];
  }
}

// The rows' integers without their zero, [m, k16], and the scales.
RowScale quantize_row(const Int8Linear& p, float* v, int16_t* q) {
  uint32_t absmax = 0, unsigned_bits = 0;
  int32_t signed_bits = std::numeric_limits<int32_t>::min();
  for (int64_t i = 0; i < p.k; ++i) {
    if (p.x_multiplier) v[i] *= p.x_multiplier[i];
    const uint32_t bits = float_to_bits(v[i]);
    absmax = std::max(absmax, bits & 0x7fffffffu);
    signed_bits = std::max(signed_bits, int32_t(bits));
    unsigned_bits = std::max(unsigned_bits, bits);
  }
  RowScale row = {};
  switch (p.mode) {
    case Int8Mode::kDynamic:
      row = row_scale(absmax, 127.f);
      break;
    case Int8Mode::kAsymmetric:
      row = row_scale_of_range(signed_bits, unsigned_bits);
      break;
    case Int8Mode::kStatic:
      row = row_scale_static(absmax, p.x_scale, p.x_zero);
      break;
    case Int8Mode::kInt16:
      row = row_scale(absmax, 32767.f);
      break;
  }
  if (row.inverse == 0) {
    std::memset(q, 0, size_t(p.k) * sizeof *q);
    return row;
  }
  const ValueRange range = value_range(row, p.mode);
  const bool zero_point = p.mode == Int8Mode::kAsymmetric || p.mode == Int8Mode::kStatic;
  const int32_t low = zero_point ? -row.zero : -32767, high = zero_point ? 255 - row.zero : 32767;
  for (int64_t i = 0; i < p.k; ++i)
    q[i] = int16_t(std::clamp(quantize(std::clamp(v[i], range.low, range.high), row.inverse), low, high));
  return row;
}

float sum_of_products(const Int8Linear& p, const int16_t* a, const int8_t* b) {
  if (p.mode != Int8Mode::kInt16) {
    int32_t sum = 0;
    for (int64_t i = 0; i < p.k; ++i) sum += int32_t(a[i]) * b[i];
    return float(sum);
  }
  int32_t high = 0, low = 0;
  for (int64_t i = 0; i < p.k; ++i) high += (int32_t(a[i]) >> 8) * b[i], low += (int32_t(a[i]) & 255) * b[i];
  return int16_sum(high, low);
}

bool linear_portable(const Int8Linear& p) {
  const int64_t k16 = int8_padded_k(p.k);
  const int8_t* weight = int8_packed_weight(p.packed, p.n);
  std::vector<int16_t> q(p.m * k16);
  std::vector<float> scales(p.m), outliers(p.m * p.outliers);
  const int64_t x_bytes = p.x_quantized ? 1 : size_of(p.type);
  const Int8Output out = int8_output(p);
  std::atomic<bool> finite{true};
  parallel_for(p.m, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> x(p.k);
    std::vector<uint8_t> patch(p.patches ? size_t(p.k * x_bytes) : 0);
    for (int64_t m = begin; m < end; ++m) {
      if (p.x_quantized) {
        const Int8PatchWalk walk(*p.patches, p.x, 1, m);
        const uint8_t* values = walk.values(patch.data(), uint8_t(p.x_zero));
        for (int64_t i = 0; i < p.k; ++i) q[m * k16 + i] = int16_t(values[i] - p.x_zero);
        scales[m] = p.x_scale;
        continue;
      }
      if (p.patches)
        load_floats(Int8PatchWalk(*p.patches, p.x, size_of(p.type), m).values(patch.data()), p.type, 0, p.k, x.data());
      else
        load_floats(p.x, p.type, m * p.k, p.k, x.data());
      for (int64_t j = 0; j < p.outliers; ++j) outliers[m * p.outliers + j] = x[p.outlier_columns[j]];
      scales[m] = quantize_row(p, x.data(), q.data() + m * k16).scale;
      if (scales[m] != scales[m]) finite.store(false, std::memory_order_relaxed);
    }
  });
  if (out.quantized && !finite) return false;
  const int64_t row_tasks = (p.m + kRows - 1) / kRows, column_tasks = (p.n + kColumns - 1) / kColumns;
  parallel_for(row_tasks * column_tasks, 1, [&](int64_t begin, int64_t end) {
    float y[kColumns];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t m0 = task / column_tasks * kRows, n0 = task % column_tasks * kColumns;
      const int64_t m1 = std::min(m0 + kRows, p.m), n1 = std::min(n0 + kColumns, p.n);
      for (int64_t m = m0; m < m1; ++m) {
        for (int64_t n = n0; n < n1; ++n) {
          float value = dequantize(sum_of_products(p, q.data() + m * k16, weight + n * k16), scales[m],
                                   p.weight_scale[n], p.bias ? p.bias[n] : 0.f);
          for (int64_t j = 0; j < p.outliers; ++j)
            value += outliers[m * p.outliers + j] * p.outlier_weight[j * p.n + n];
          y[n - n0] = value;
        }
        activate<false>(y, n1 - n0, p.activation);
        if (out.quantized)
          for (int64_t n = n0; n < n1; ++n) static_cast<uint8_t*>(p.y)[m * p.n + n] = quantize_output(out, y[n - n0]);
        else
          store_floats(y, n1 - n0, p.type, m * p.n + n0, p.y);
      }
    }
  });
  return true;
}

const Int8Kernel kPortable = {"portable", [] { return true; }, pack_portable, linear_portable};

const Int8Kernel* const kKernels[] = {&kInt8Avx512Vnni, &kInt8AvxVnni, &kInt8Avx2, &kPortable};  // fastest first

}  // namespace

const Int8Kernel* int8_kernel(const std::string& name) {
  for (const Int8Kernel* kernel : kKernels)
    if ((name == "auto" || name == kernel->name) && kernel->available()) return kernel;
  return nullptr;
}

std::string int8_kernel_names() {
  std::string names;
  for (const Int8Kernel* kernel : kKernels)
    if (kernel->available()) names += (names.empty() ? "" : ", ") + std::string(kernel->name);
  return names;
}

void int8_pack_weight(const Int8Kernel& kernel, const Int8PackWeight& p) {
  const size_t bytes = size_t(int8_packed_bytes(p.n, p.k));
  prefer_huge_pages(p.packed, bytes);
  std::memset(p.packed, 0, bytes);
  move_to_huge_pages(p.packed, bytes);
  Int8PackedHeader header = {};
  std::strncpy(header.kernel, kernel.name, sizeof header.kernel - 1);
  header.n = p.n;
  header.k = p.k;
  std::memcpy(p.packed, &header, sizeof header);
  kernel.pack(p);
}

void int8_pack_layer(const Int8Linear& p, uint8_t* packed) {
  Int8PackedHeader header;
  std::memcpy(&header, packed, sizeof header);
  header.outliers = p.outliers;
  header.layer = 1;
  header.multiplied = p.x_multiplier != nullptr;
  header.mode = int32_t(p.mode);
  header.activation = int32_t(p.activation);
  header.x_scale = p.x_scale;
  header.x_zero = p.x_zero;
  std::memcpy(packed, &header, sizeof header);
  uint8_t* out = packed + int8_packed_bytes(p.n, p.k);
  const auto append = [&](const auto* values, int64_t count, int64_t padded) {
    if (count > 0) std::memcpy(out, values, size_t(count) * sizeof *values);
    std::memset(out + count * sizeof *values, 0, size_t(padded - count) * sizeof *values);
    out += padded * sizeof *values;
  };
  append(p.weight_scale, p.n, int8_padded_n(p.n));
  if (p.x_multiplier) append(p.x_multiplier, p.k, int8_padded_k(p.k));
  append(p.outlier_columns, p.outliers, p.outliers);
  append(p.outlier_weight, p.outliers * p.n, p.outliers * p.n);
}

Int8Linear int8_packed_layer(const uint8_t* packed) {
  Int8PackedHeader header;
  std::memcpy(&header, packed, sizeof header);
  Int8Linear p = {};
  p.n = header.n, p.k = header.k;
  p.packed = packed;
  p.mode = Int8Mode(header.mode);
  p.activation = Activation(header.activation);
  p.x_scale = header.x_scale, p.x_zero = header.x_zero;
  p.outliers = header.outliers;
  const uint8_t* next = packed + int8_packed_bytes(p.n, p.k);
  p.weight_scale = reinterpret_cast<const float*>(next);
  next += 4 * int8_padded_n(p.n);
  if (header.multiplied) p.x_multiplier = reinterpret_cast<const float*>(next), next += 4 * int8_padded_k(p.k);
  p.outlier_columns = reinterpret_cast<const int64_t*>(next);
  p.outlier_weight = reinterpret_cast<const float*>(next + 8 * p.outliers);
  return p;
}

}  // namespace fastcl
