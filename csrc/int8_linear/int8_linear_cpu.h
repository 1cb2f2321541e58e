// The CPU's kernels, and how the vector ones go over the matrices.
//
// A vector kernel multiplies a tile: a few rows of x, quantised into a micro-block, by a panel of columns. Here stands
// what is the same for all: who does which tiles, when rows are quantised, what is prefetched.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "common/buffer.h"
#include "common/parallel.h"
#include "int8_conv2d/int8_conv2d_cpu.h"
#include "int8_linear/int8_linear.h"
#include "int8_linear/int8_linear_math.h"

namespace fastcl {

extern const Int8Kernel kInt8Avx512Vnni;
extern const Int8Kernel kInt8AvxVnni;
extern const Int8Kernel kInt8Avx2;

constexpr int kInt8Chunk = 16;  // values of k in a row, between those of the next row of a micro-block

// Rows of a micro-block for each row of x: kInt16 has one of q >> 8 and one of q & 255.
inline int int8_planes(Int8Mode mode) { return mode == Int8Mode::kInt16 ? 2 : 1; }

// How Kernel::quantize_row stored a row of x. The kernel takes zero[plane] times the sums of the weight off again.
// Written through a reference: as a value it is returned in registers, which are filled from two separate stores at
// once, and that waits until every store before has left the processor.
struct Int8Row {
  float scale;
  int32_t zero[2];
};

struct Int8Tile {
  const uint8_t* a;            // micro-block [k16 / 16][rows][16], values as the kernel wants them; or null, and then
  const uint8_t* const* rows;  // four values of k of row r, the g-th four, stand at rows[r] + steps[g]
  const int32_t* steps;
  const int8_t* b;            // panel of the packed weight
  int64_t chunks;             // k16 / 16
  const int32_t* sums;        // [panel]
  const float* weight_scale;  // [panel]
  const float* bias;          // [panel]
  const float* row_scale;     // [rows / planes]
  int planes;                 // int8_planes
  int32_t zero;               // of every row; 0 where they differ
  const int32_t* row_zero;    // [rows], null where they do not differ
  int64_t outliers;
  const float* outlier_x;       // [rows / planes][outliers]
  const float* outlier_weight;  // [outliers][panel]
  uint8_t* y;
  int64_t y_stride;  // bytes from row to row
  FloatType type;    // of y, if it is not quantised
  Int8Output out;
  int columns;  // valid ones, up to the panel's
  Activation activation;
  bool stream;              // y is large: write it past the cache
  const char* prefetch;     // what is read soon, ...
  ptrdiff_t prefetch_step;  // ... bytes from one 4 values of k to the next
};

namespace {  // a copy for each kernel's file, which compiles it as it may

// Even cut of n items in parts: heights of micro-blocks differ by at most one, so none is thin.
inline int64_t cut(int64_t n, int64_t parts, int64_t i) { return n * i / parts; }

// Panels of kColumns rows of the weight, [n32 / kColumns][k16 / kGroup][kColumns][kGroup], and the rows' sums.
template <int kColumns, int kGroup>
void pack_panels(const Int8PackWeight& p) {
  const int64_t panel_bytes = int8_padded_k(p.k) * kColumns;
  int32_t* sums = int8_packed_sums(p.packed);
  int8_t* panels = int8_packed_weight(p.packed, p.n);
  parallel_for(p.n, kColumns, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int8_t* row = p.weight + n * p.k;
      int8_t* out = panels + n / kColumns * panel_bytes + n % kColumns * kGroup;
      int32_t sum = 0;
      for (int64_t k = 0; k < p.k; ++k) {
        out[k / kGroup * kGroup * kColumns + k % kGroup] = row[k];
        sum += row[k];
      }
      sums[n] = sum;
    }
  });
}

class AlignedBytes {
 public:
  uint8_t* get() const { return data_.get(); }
  void reserve(int64_t bytes) {
    if (bytes <= capacity_) return;
    data_.reset(static_cast<uint8_t*>(::operator new[](size_t(bytes), std::align_val_t(64))));
    capacity_ = bytes;
  }
  void trim() {
    if (capacity_ <= (int64_t(1) << 20)) return;
    data_.reset();
    capacity_ = 0;
  }

 private:
  struct Delete {
    void operator()(uint8_t* data) const { ::operator delete[](data, std::align_val_t(64)); }
  };
  std::unique_ptr<uint8_t[], Delete> data_;
  int64_t capacity_ = 0;
};

// A patch is runs of neighbours in its image: how far each `unit` values of k stand from its first one. None where a
// unit would cross from one run into the next.
inline std::vector<int32_t> patch_steps(const Int8Patches& p, int64_t k, int64_t unit) {
  const int64_t c = p.channels, line = p.kernel_width * c, run = p.dilation_x == 1 ? line : c;
  if (run % unit != 0 || p.height * p.width * c > std::numeric_limits<int32_t>::max()) return {};
  std::vector<int32_t> steps(size_t(int8_padded_k(k) / unit));  // past k they are 0: any, they meet weights of zero
  for (int64_t i = 0; i < k; i += unit) {
    const int64_t y = i / line * p.dilation_y, x = i % line / c * p.dilation_x;
    steps[size_t(i / unit)] = int32_t((y * p.width + x) * c + i % c);
  }
  return steps;
}

// Images in quantised form, with their padding.
struct Int8Images {
  const uint8_t* values = nullptr;  // null: there are none
  Buffer<uint8_t> own;              // where they stand
  Int8Patches patches;              // of these images
  std::vector<int32_t> steps;       // of fours, which the kernel then reads in the image
};

inline bool patches_overlap(const Int8Patches& p) { return p.kernel_height * p.kernel_width > p.stride_y * p.stride_x; }

// Fills `images` with those of p and their padding, pixels of bytes that are `zero`; fill(pixel, count, out) writes
// count pixels from x's.
template <class Fill>
void pad_images(const Int8Linear& p, int64_t pixel_bytes, int zero, Int8Images& images, Fill&& fill) {
  const Int8Patches& from = *p.patches;
  Int8Patches& to = images.patches = from;
  to.height = (from.out_height - 1) * from.stride_y + (from.kernel_height - 1) * from.dilation_y + 1;
  to.width = (from.out_width - 1) * from.stride_x + (from.kernel_width - 1) * from.dilation_x + 1;
  to.pad_top = to.pad_left = 0;
  const int64_t left = std::min(from.pad_left, to.width), inside = std::clamp<int64_t>(to.width - left, 0, from.width);
  const int64_t lines = p.m / (from.out_height * from.out_width) * to.height, line = to.width * pixel_bytes;
  if (double(lines) * double(line) > 0x1p46) throw std::bad_alloc();  // a stride may be far larger than its kernel
  images.own = Buffer<uint8_t>(lines * line + 2 * kInt8Chunk * 4);    // chunks are read whole
  images.values = images.own.get();
  parallel_for(lines, grain_of(to.width * to.channels), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      uint8_t* out = images.own.get() + i * line;
      const int64_t y = i % to.height - from.pad_top;
      if (y < 0 || y >= from.height || inside == 0) {
        std::memset(out, zero, size_t(line));
        continue;
      }
      std::memset(out, zero, size_t(left * pixel_bytes));
      fill((i / to.height * from.height + y) * from.width, inside, out + left * pixel_bytes);
      std::memset(out + (left + inside) * pixel_bytes, zero, size_t((to.width - left - inside) * pixel_bytes));
    }
  });
}

// In kStatic a value is the same integer in every patch that it is part of: images are quantised whole, once. None
// where that cannot be, or does not pay, or a value is not finite.
template <class Kernel>
Int8Images quantized_images(const Int8Linear& p) {
  Int8Images images;
  if (p.patches == nullptr || p.mode != Int8Mode::kStatic || p.x_multiplier || p.outliers) return images;
  if (!patches_overlap(*p.patches) && !p.x_quantized && !p.y_quantized) return images;
  const int64_t channels = p.patches->channels, pixel_bytes = channels * Kernel::kValueBytes;
  const int zero = Kernel::kValueBytes == 1 ? p.x_zero : 0;  // as Kernel::quantize_row stores 0
  const auto* x = static_cast<const uint8_t*>(p.x);
  if (p.x_quantized) {
    pad_images(p, pixel_bytes, zero, images, [&](int64_t pixel, int64_t count, uint8_t* out) {
      Kernel::take_quantized(x + pixel * channels, count * channels, p.x_zero, out);
    });
  } else {
    std::atomic<bool> finite{true};
    pad_images(p, pixel_bytes, zero, images, [&](int64_t pixel, int64_t count, uint8_t* out) {
      static thread_local AlignedBytes quantized;
      Int8Linear row = p;
      row.k = count * channels;
      quantized.reserve(int8_padded_k(row.k) * Kernel::kValueBytes);
      Int8Row stored;
      Kernel::quantize_row(row, x + pixel * channels * size_of(p.type), quantized.get(),
                           kInt8Chunk * Kernel::kValueBytes, stored);
      if (!(stored.scale == p.x_scale)) finite.store(false, std::memory_order_relaxed);
      std::memcpy(out, quantized.get(), size_t(count * pixel_bytes));
    });
    if (!finite) return {};  // a patch that holds a NaN gives NaN, the others do not
  }
  if (Kernel::kReadsImages) images.steps = patch_steps(images.patches, p.k, 4);
  return images;
}

// The values as they are, where patches go over the border: there one is put together from pieces, which takes longer
// than to copy all images, if these are small as those of few channels are.
inline Int8Images padded_images(const Int8Linear& p) {
  Int8Images images;
  if (p.patches == nullptr || !patches_overlap(*p.patches) || p.patches->channels >= kInt8Chunk) return images;
  const Int8PatchWalk last(*p.patches, nullptr, 1, p.m - 1);
  if (p.patches->pad_top == 0 && p.patches->pad_left == 0 && last.is_inside()) return images;
  const int64_t pixel_bytes = p.patches->channels * size_of(p.type);
  pad_images(p, pixel_bytes, 0, images, [&](int64_t pixel, int64_t count, uint8_t* out) {
    std::memcpy(out, static_cast<const uint8_t*>(p.x) + pixel * pixel_bytes, size_t(count * pixel_bytes));
  });
  return images;
}

// Rows in quantised form.
template <class Kernel>
class Int8Block {
 public:
  int64_t first = 0, rows = 0, micro_blocks = 0;
  std::vector<float> scale;                // [rows]
  std::vector<int32_t> zero;               // [rows, planes]
  std::vector<float> outlier_x;            // [rows, outliers]
  std::vector<const uint8_t*> image_rows;  // [rows], where their patches begin, if the kernel reads them there

  // `images` are those of p, if any, and `chunk_steps` the patch_steps of chunks, if patches are quantised where they
  // are.
  void open(const Int8Linear& p, const Int8Images& images, const std::vector<int32_t>& chunk_steps, int64_t begin,
            int64_t end) {
    images_ = &images;
    chunk_steps_ = &chunk_steps;
    const int64_t planes = int8_planes(p.mode);
    first = begin;
    rows = end - begin;
    micro_blocks = (rows * planes + Kernel::kRows - 1) / Kernel::kRows;
    row_bytes_ = int8_padded_k(p.k) * Kernel::kValueBytes * planes;
    if (reads_images())
      image_rows.resize(size_t(rows));
    else
      data_.reserve(row_bytes_ * rows);
    if (p.patches) patch_.reserve(int8_padded_k(p.k) * 4);
    if (int64_t(scale.size()) < rows) scale.resize(size_t(rows));
    if (int64_t(zero.size()) < rows * planes) zero.resize(size_t(rows * planes));
    if (int64_t(outlier_x.size()) < rows * p.outliers) outlier_x.resize(size_t(rows * p.outliers));
  }

  bool reads_images() const { return images_->values != nullptr && !images_->steps.empty(); }
  const int32_t* steps() const { return images_->steps.data(); }
  uint8_t* micro_block(int64_t i) { return data_.get() + row_bytes_ * cut(rows, micro_blocks, i); }

  // Quantises rows begin .. end of the block.
  void quantize(const Int8Linear& p, int64_t begin, int64_t end) {
    if (p.patches == nullptr) {
      const int64_t x_bytes = p.k * size_of(p.type);
      const uint8_t* x = static_cast<const uint8_t*>(p.x) + (first + begin) * x_bytes;
      each_row(p, begin, end, [&](const int32_t*&) { return std::exchange(x, x + x_bytes); });
    } else if (begin == end) {
      return;
    } else if (reads_images()) {
      Int8PatchWalk walk(images_->patches, images_->values, Kernel::kValueBytes, first + begin);
      for (int64_t r = begin; r < end; ++r, walk.next()) {
        image_rows[size_t(r)] = walk.begin();
        scale[size_t(r)] = p.x_scale;
      }
    } else if (images_->values != nullptr) {
      Int8PatchWalk walk(images_->patches, images_->values, Kernel::kValueBytes, first + begin);
      constexpr int64_t kBytes = kInt8Chunk * Kernel::kValueBytes;
      const int64_t chunks = int8_padded_k(p.k) / kInt8Chunk;
      for (int64_t i = 0; i < micro_blocks; ++i) {
        const int64_t r0 = cut(rows, micro_blocks, i), r1 = cut(rows, micro_blocks, i + 1);
        for (int64_t r = std::max(r0, begin); r < std::min(r1, end); ++r, walk.next()) {
          scale[size_t(r)] = p.x_scale;
          const uint8_t* values = Kernel::patch(walk, patch_.get());
          uint8_t* out = micro_block(i) + (r - r0) * kBytes;
          const int64_t step = (r1 - r0) * kBytes;
          for (int64_t chunk = 0; chunk < chunks; ++chunk)
            std::memcpy(out + chunk * step, values + chunk * kBytes, kBytes);
        }
      }
    } else {
      Int8PatchWalk walk(*p.patches, p.x, size_of(p.type), first + begin);
      each_row(p, begin, end, [&](const int32_t*& steps) {
        if (!chunk_steps_->empty() && walk.is_inside()) steps = chunk_steps_->data();
        const uint8_t* values = steps ? walk.begin() : Kernel::patch(walk, patch_.get());
        walk.next();
        return values;
      });
    }
  }

  template <class Values>
  void each_row(const Int8Linear& p, int64_t begin, int64_t end, Values&& next_values) {
    const int64_t planes = int8_planes(p.mode);
    for (int64_t i = 0; i < micro_blocks; ++i) {
      const int64_t r0 = cut(rows, micro_blocks, i), r1 = cut(rows, micro_blocks, i + 1);
      for (int64_t r = std::max(r0, begin); r < std::min(r1, end); ++r) {
        const int32_t* steps = nullptr;
        const uint8_t* values = next_values(steps);
        uint8_t* out = micro_block(i) + (r - r0) * planes * kInt8Chunk * Kernel::kValueBytes;
        const int64_t step = (r1 - r0) * planes * kInt8Chunk * Kernel::kValueBytes;
        Int8Row row;
        if constexpr (Kernel::kReadsImages)
          if (steps) Kernel::quantize_patch(p, values, steps, out, step, row);
        if (steps == nullptr) Kernel::quantize_row(p, values, out, step, row);
        scale[size_t(r)] = row.scale;
        for (int64_t plane = 0; plane < planes; ++plane) zero[size_t(r * planes + plane)] = row.zero[plane];
        for (int64_t j = 0; j < p.outliers; ++j)
          load_floats(values, p.type, p.outlier_columns[j], 1, &outlier_x[size_t(r * p.outliers + j)]);
      }
    }
  }

  void trim() {  // blocks of ordinary size stay for the next call
    data_.trim();
    patch_.trim();
  }

 private:
  AlignedBytes data_, patch_;
  const Int8Images* images_ = nullptr;
  const std::vector<int32_t>* chunk_steps_ = nullptr;
  int64_t row_bytes_ = 0;
};

// Multiplies a block with panels p0 .. p1. The rows of `next`, if any, are quantised a few after each panel, from cache
// lines that the kernel fetched during that panel: reading x then costs no time of its own.
template <class Kernel>
void multiply_block(const Int8Linear& p, bool stream, Int8Block<Kernel>& block, Int8Block<Kernel>* next, int64_t p0,
                    int64_t p1) {
  constexpr int kColumns = Kernel::kColumns;
  const int64_t k16 = int8_padded_k(p.k), panel_bytes = k16 * kColumns;
  const int64_t y_bytes = p.y_quantized ? 1 : size_of(p.type);
  const int64_t pass_bytes = k16 / 4 * 64;  // that one tile prefetches
  const int64_t x_bytes = p.k * size_of(p.type);
  alignas(64) float weight_scale[kColumns] = {}, bias[kColumns] = {};
  Int8Tile t;
  t.chunks = k16 / kInt8Chunk;
  t.weight_scale = weight_scale;
  t.bias = bias;
  t.y_stride = p.n * y_bytes;
  t.type = p.type;
  t.out = int8_output(p);
  t.activation = p.activation;
  t.stream = stream;
  t.planes = int8_planes(p.mode);
  const bool rows_differ = p.mode == Int8Mode::kAsymmetric || p.mode == Int8Mode::kInt16;
  t.zero = p.mode == Int8Mode::kStatic ? p.x_zero : rows_differ ? 0 : 128;
  t.outliers = p.outliers;
  t.steps = block.steps();
  static thread_local std::vector<float> outlier_weight;
  outlier_weight.assign(size_t(p.outliers * kColumns), 0.f);
  t.outlier_weight = outlier_weight.data();
  for (int64_t panel = p0; panel < p1; ++panel) {
    const int64_t n = panel * kColumns;
    t.columns = int(std::min<int64_t>(kColumns, p.n - n));
    if (t.columns == kColumns) {
      t.weight_scale = p.weight_scale + n;
      if (p.bias) t.bias = p.bias + n;
    } else {
      std::copy_n(p.weight_scale + n, t.columns, weight_scale);
      if (p.bias) std::copy_n(p.bias + n, t.columns, bias);
      t.weight_scale = weight_scale;
      t.bias = bias;
    }
    for (int64_t j = 0; j < p.outliers; ++j)
      std::copy_n(p.outlier_weight + j * p.n + n, t.columns, outlier_weight.data() + j * kColumns);
    t.b = int8_packed_weight(p.packed, p.n) + panel * panel_bytes;
    t.sums = int8_packed_sums(p.packed) + n;
    const int64_t q0 = next ? cut(next->rows, p1 - p0, panel - p0) : 0;
    const int64_t q1 = next ? cut(next->rows, p1 - p0, panel - p0 + 1) : 0;
    const char* x = static_cast<const char*>(p.x) + (next ? (next->first + q0) * x_bytes : 0);
    for (int64_t i = 0; i < block.micro_blocks; ++i) {
      const int64_t r0 = cut(block.rows, block.micro_blocks, i), r1 = cut(block.rows, block.micro_blocks, i + 1);
      t.a = block.reads_images() ? nullptr : block.micro_block(i);
      t.rows = block.image_rows.data() + r0;
      t.row_scale = block.scale.data() + r0;
      t.row_zero = rows_differ ? block.zero.data() + r0 * t.planes : nullptr;
      t.outlier_x = block.outlier_x.data() + r0 * p.outliers;
      t.y = static_cast<uint8_t*>(p.y) + ((block.first + r0) * p.n + n) * y_bytes;
      t.prefetch_step = 64;
      if ((r1 - r0) * t.planes < 8) {  // bound by the weight's stream: run ahead in it
        t.prefetch = reinterpret_cast<const char*>(t.b) + 4096;
        t.prefetch_step = 4 * kColumns;
      } else if (i < 2) {  // the first two tiles fetch half of the next panel each
        t.prefetch = reinterpret_cast<const char*>(t.b) + panel_bytes + i * pass_bytes;
      } else if (p.patches == nullptr &&
                 (i - 2) * pass_bytes < (q1 - q0) * x_bytes) {  // then the rows that are quantised below
        t.prefetch = x + (i - 2) * pass_bytes;
      } else {
        t.prefetch = reinterpret_cast<const char*>(t.b);
        t.prefetch_step = 0;
      }
      Kernel::multiply(int(r1 - r0) * t.planes, t);
    }
    if (next) next->quantize(p, q0, q1);
  }
}

// Items cut evenly in shares, one for each thread: what it works on lies together, and is in its core's cache before
// and after this op as well. Who is done with its own goes on with another's.
class Int8Shares {
 public:
  Int8Shares(int64_t items, int64_t count) : count_(count), shares_(std::make_unique<Share[]>(size_t(count))) {
    for (int64_t i = 0; i < count; ++i) {
      shares_[size_t(i)].next = cut(items, count, i);
      shares_[size_t(i)].end = cut(items, count, i + 1);
    }
  }

  int64_t claim(int64_t own) {  // -1: none is left
    for (int64_t i = own; i < own + count_; ++i) {
      Share& share = shares_[size_t(i % count_)];
      if (share.next.load(std::memory_order_relaxed) >= share.end) continue;
      const int64_t item = share.next.fetch_add(1, std::memory_order_relaxed);
      if (item < share.end) return item;
    }
    return -1;
  }

 private:
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  int64_t count_;
  std::unique_ptr<Share[]> shares_;
};

// Of the calling thread: the kernel reads one while the other is filled.
template <class Kernel>
Int8Block<Kernel> (&thread_blocks())[2] {
  static thread_local Int8Block<Kernel> blocks[2];
  return blocks;
}

template <class Kernel>
bool linear_in_blocks(const Int8Linear& layer) {
  const Int8Images images = quantized_images<Kernel>(layer);
  if (layer.y_quantized && images.values == nullptr) return false;
  Int8Linear p = layer;
  const Int8Images padded = images.values ? Int8Images() : padded_images(p);
  if (padded.values) p.x = padded.values, p.patches = &padded.patches;
  std::vector<int32_t> chunk_steps;
  if (Kernel::kReadsImages && p.patches && p.mode == Int8Mode::kDynamic && !p.x_multiplier && !p.outliers)
    chunk_steps = patch_steps(*p.patches, p.k, kInt8Chunk);
  constexpr int64_t kSmallWork = int64_t(1) << 20;    // products: less is done nearly as soon as a second thread starts
  constexpr int64_t kBlockBytes = int64_t(1) << 18;   // of quantised rows, a part of the second-level cache
  constexpr int64_t kStreamBytes = int64_t(4) << 20;  // of output for each thread
  constexpr int64_t kPieces = 8;                      // of a thread's columns
  const int64_t k16 = int8_padded_k(p.k), panels = (p.n + Kernel::kColumns - 1) / Kernel::kColumns;
  const int64_t threads = p.m * p.n * p.k <= kSmallWork ? 1 : thread_count();
  const int64_t rows_in_tile = Kernel::kRows / int8_planes(p.mode);
  const int64_t row_parts = p.m < 3 * rows_in_tile ? 1 : std::min(threads, p.m / rows_in_tile);
  const int64_t column_parts = std::min(threads / row_parts, panels);
  const int64_t tile_bytes = k16 * Kernel::kValueBytes * Kernel::kRows;
  const int64_t block_rows = std::clamp<int64_t>(kBlockBytes / tile_bytes, 1, 8) * rows_in_tile;
  const int64_t rows_each = (p.m + row_parts - 1) / row_parts;
  // A multiple of the parts, all of one size, so that nobody waits for a last block.
  const int64_t blocks = (rows_each + block_rows - 1) / block_rows * row_parts;
  const bool stream = !p.y_quantized && p.type == FloatType::kFloat32 && p.m * p.n * 4 > kStreamBytes * threads &&
                      p.n % Kernel::kColumns == 0 && reinterpret_cast<uintptr_t>(p.y) % 64 == 0;
  const auto open = [&](Int8Block<Kernel>& block, int64_t i) {
    block.open(p, images, chunk_steps, cut(p.m, blocks, i), cut(p.m, blocks, i + 1));
  };
  const auto finish = [&](Int8Block<Kernel>(&pair)[2]) {
    for (Int8Block<Kernel>& block : pair) block.trim();
    if (stream) Kernel::finish_streams();
  };
  if (blocks == 1) {
    // Of few rows threads share the columns, and quantise the rows for themselves: cheaper than to wait for each other.
    const int64_t pieces = column_parts == 1 ? 1 : std::min(panels, kPieces * column_parts);
    Int8Shares shares(pieces, column_parts);
    parallel_for(column_parts, 1, [&](int64_t begin, int64_t end) {
      auto& pair = thread_blocks<Kernel>();
      bool begun = false;
      for (int64_t part = begin; part < end; ++part)
        for (int64_t i; (i = shares.claim(part)) >= 0;) {
          if (!std::exchange(begun, true)) {
            open(pair[0], 0);
            pair[0].quantize(p, 0, p.m);
          }
          multiply_block<Kernel>(p, stream, pair[0], nullptr, cut(panels, pieces, i), cut(panels, pieces, i + 1));
        }
      finish(pair);
    });
    return true;
  }
  Int8Shares shares(blocks, row_parts);
  parallel_for(row_parts * column_parts, 1, [&](int64_t begin, int64_t end) {
    auto& pair = thread_blocks<Kernel>();
    for (int64_t part = begin; part < end; ++part) {
      const int64_t row_part = part % row_parts, column_part = part / row_parts;
      const int64_t p0 = cut(panels, column_parts, column_part), p1 = cut(panels, column_parts, column_part + 1);
      const int64_t each = blocks / row_parts;
      int64_t own = each * row_part;
      const auto open_next = [&](Int8Block<Kernel>& block) {
        // with the columns cut as well every part goes over all its rows
        const int64_t i = column_parts == 1 ? shares.claim(row_part) : own < each * (row_part + 1) ? own++ : -1;
        if (i >= 0) open(block, i);
        return i >= 0;
      };
      bool more = open_next(pair[0]);
      if (more) pair[0].quantize(p, 0, pair[0].rows);
      for (int current = 0; more; current ^= 1) {
        more = open_next(pair[current ^ 1]);
        multiply_block<Kernel>(p, stream, pair[current], more ? &pair[current ^ 1] : nullptr, p0, p1);
      }
    }
    finish(pair);
  });
  return true;
}

}  // namespace
}  // namespace fastcl
