// One view of one image by one thread block: the stages that the row of parameters asks for, one after another, with
// barriers between them. All threads of the block take every branch together.
#pragma once

#include <cmath>

#include "augment/augment.h"
#include "augment/augment_cuda_axes.h"
#include "augment/augment_cuda_block.h"
#include "augment/augment_math.h"
#include "common/cuda/launch.h"
#include "common/float_types.h"

namespace fastcl {

constexpr int kLaunchChannels = 64;  // that one launch has room for in its arguments

// What the kernel is launched with.
struct AugmentBatch {
  const uint8_t* images;
  const uint8_t* images_end;
  bool bytes;                                                      // uint8, else float32
  int64_t image_stride, channel_stride, row_stride, pixel_stride;  // elements; not of ragged images
  const int64_t* offsets;                                          // [n], of ragged images, else null
  const int32_t* shapes;                                           // [n, 3], likewise
  int n, channels, first_channel, height, width;
  const AugmentParams* params;  // [n]
  int out_height, out_width;
  bool nearest, bicubic, filled;
  void* out;
  PixelType out_type;
  int64_t out_channel_stride, out_pixel_stride;  // elements
  float* planes;                                 // [grid x, grid y, block_planes]; null: in shared memory
  int64_t block_planes;                          // floats
  int arena;                                     // floats of shared memory beside the planes
  float fill[kLaunchChannels];
  float factor[kLaunchChannels], add[kLaunchChannels];  // normalisation of values up to 255 or 1
  float erase[kLaunchChannels];
};

template <int kChannels>
class CudaView {
 public:
  // `planes`: [2, kChannels, pitch]; `arena`: a.arena floats of shared memory.
  __device__ __forceinline__ CudaView(const AugmentBatch& a, const AugmentParams& p, int number, int channel,
                                      float* planes, float* arena)
      : a_(a),
        p_(p),
        height_(a.out_height),
        width_(a.out_width),
        pixels_(a.out_height * a.out_width),
        pitch_((pixels_ + 3) / 4 * 4),
        channel_(channel),
        out_(int64_t(number) * a.channels * pixels_ + (a.first_channel + channel) * a.out_channel_stride),
        image_(planes),
        other_(planes + kChannels * pitch_),
        arena_(arena),
        bound_(a.bytes ? 255.f : 1.f),
        blur_(p.blur_sigma > 0),
        whole_(p.sharpen != 0 || p.autocontrast != 0 || p.equalize != 0) {}

  // The image's upper left pixel, and the steps from element to element.
  __device__ __forceinline__ void run(const uint8_t* image, int64_t channel_stride, int64_t row_stride,
                                      int64_t pixel_stride) {
    Sweep sweep = next_sweep(0, false, 0);
    const bool warps = !is_identity_map(p_);
    double gray = 0;
    // Without a warp a row's colours are changed as soon as it is there.
    bool swept = resize(image, channel_stride, row_stride, pixel_stride, warps ? nullptr : &sweep, &gray);
    __syncthreads();
    if (warps) warp();
    for (;;) {
      if (!swept) gray = sweep_pixels(sweep, 0, pixels_);
      swept = false;
      if (sweep.last) break;
      sweep = next_sweep(sweep.end, true, block_total(gray) / double(pixels_));
    }
    if (blur_) blur();
    if (whole_) finish();
    if (p_.erase_height > 0 && p_.erase_width > 0) erase();
  }

  // Of an image that cannot be.
  __device__ __forceinline__ void fill_with_nothing() {
    for_each(kChannels, pixels_, [&](int c, int p) { put(place(c, p), NAN); });
  }

 private:
  // As in augment_cpu.cpp: contrast needs the mean gray of what is before it, so it begins a new sweep.
  struct Sweep {
    int begin, end;  // of color_op, the contrast that begins it included
    float mean;      // of the gray before that contrast
    bool last;       // no contrast follows
  };

  __device__ __forceinline__ Sweep next_sweep(int begin, bool contrast, double mean) const {
    int end = begin + contrast;
    while (end < 4 && int(p_.color_op[end]) != kContrast) ++end;
    return {begin, end, float(mean), end == 4};
  }

  // ---- crop, resize, flips ----

  // Four elements at `from`, `step` apart, of which `count` are there; the rest 0.
  __device__ __forceinline__ float4 load_four(const uint8_t* image, int64_t at, int64_t step, int count) const {
    float v[4] = {0.f, 0.f, 0.f, 0.f};
    if (!a_.bytes) {
      const float* from = reinterpret_cast<const float*>(image) + at;
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (k < count) v[k] = from[k * step];
      return make_float4(v[0], v[1], v[2], v[3]);
    }
    const uint8_t* from = image + at;
    const int shift = int(reinterpret_cast<uintptr_t>(from) & 3);
    const uint8_t* word = from - shift;
    if (step == 1 && word >= a_.images && word + 8 <= a_.images_end) {
      // Four bytes out of one word or two; as the low bits of 2^23 they are floats without a conversion.
      const unsigned* words = reinterpret_cast<const unsigned*>(word);
      const unsigned four = shift ? __funnelshift_r(words[0], words[1], 8 * shift) : words[0];
#pragma unroll
      for (int k = 0; k < 4; ++k) v[k] = __uint_as_float(__byte_perm(four, 0x4B000000u, 0x7540 + k)) - 8388608.f;
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (k < count) v[k] = float(from[k * step]);
    }
    return make_float4(v[0], v[1], v[2], v[3]);
  }

  // Writes the planes; takes the rows through `sweep` on the way where it can, and returns whether it did.
  __device__ __forceinline__ bool resize(const uint8_t* image, int64_t channel_stride, int64_t row_stride,
                                         int64_t pixel_stride, const Sweep* sweep, double* gray) {
    FASTCL_SHARED(ResampledAxis, axes, [2]);
    if (threadIdx.x == 0) axes[0].describe(int(p_.crop_width), width_, a_.bicubic, p_.hflip != 0);
    if (threadIdx.x == 32) axes[1].describe(int(p_.crop_height), height_, a_.bicubic, p_.vflip != 0);
    __syncthreads();
    const ResampledAxis &across = axes[0], &down = axes[1];
    const int64_t crop = int64_t(p_.crop_top) * row_stride + int64_t(p_.crop_left) * pixel_stride;
    // A row is one run of memory for each channel, or one for all where the channels come last.
    const bool interleaved = kChannels > 1 && channel_stride == 1;
    const int runs = interleaved ? 1 : kChannels, step = interleaved ? kChannels : 1;
    const int64_t element_stride = interleaved ? 1 : pixel_stride;
    if (a_.bicubic && a_.bytes) {
      resize_cut_off(image + crop, channel_stride, row_stride, pixel_stride, across, down);
      return false;
    }

    // A tile: as many columns as leave room for some rows, then as many rows as there is room for.
    int columns = width_, rows = 0, run_pitch = 0;
    for (;; columns = (columns + 1) / 2) {
      const double reached = double(columns - 1) * across.scale + across.taps + 2;
      const int most = reached < across.in ? int(reached) : across.in;
      const int64_t pitch = (int64_t(most) * step + 3) / 4 * 4, table = int64_t(columns) * (across.taps + 1);
      const int64_t room = a_.arena - (table + 3) / 4 * 4, row = runs * pitch + down.taps + 1;
      run_pitch = int(pitch < a_.arena ? pitch : a_.arena);
      rows = room > 0 ? int(room / row < height_ ? room / row : height_) : 0;
      if (rows >= 4 || rows == height_ || columns == 1) break;
    }
    if (rows == 0) {
      resize_directly(image, crop, channel_stride, row_stride, pixel_stride, across, down);
      return false;
    }
    if (rows > 4 && rows < height_) rows = rows / 4 * 4;
    const bool follows = sweep && columns == width_ && (rows % 4 == 0 || rows == height_);

    float* const weight_x = arena_;
    int* const first_x = reinterpret_cast<int*>(weight_x + across.taps * columns);
    float* const stage = arena_ + (columns * (across.taps + 1) + 3) / 4 * 4;  // [rows, runs, run_pitch]
    float* const weight_y = stage + rows * runs * run_pitch;
    int* const first_y = reinterpret_cast<int*>(weight_y + rows * down.taps);
    for (int left = 0; left < width_; left += columns) {
      const int n = min(columns, width_ - left);
      const int one = across.first(left), last = across.first(left + n - 1);
      const int begin = min(one, last), span = max(one, last) + across.taps - begin;
      __syncthreads();
      across.build(left, n, first_x, weight_x);
      for (int top = 0; top < height_; top += rows) {
        const int some = min(rows, height_ - top);
        down.build(top, some, first_y, weight_y);
        __syncthreads();
        for_each(some * runs, (span * step + 3) / 4, [&](int item, int four) {
          const int r = item % some, run = item / some;
          int64_t at =
              crop + first_y[r] * row_stride + begin * pixel_stride + run * channel_stride + 4 * four * element_stride;
          const int count = min(4, span * step - 4 * four);
          float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 2
          for (int t = 0; t < down.taps; ++t, at += row_stride) {
            const float4 v = load_four(image, at, element_stride, count);
            const float w = weight_y[t * some + r];
            sum = make_float4(fmaf(v.x, w, sum.x), fmaf(v.y, w, sum.y), fmaf(v.z, w, sum.z), fmaf(v.w, w, sum.w));
          }
          *reinterpret_cast<float4*>(stage + (r * runs + run) * run_pitch + 4 * four) = sum;
        });
        __syncthreads();
        for_each(some, n, [&](int r, int x) {
          const float* row = stage + r * runs * run_pitch + (first_x[x] - begin) * step;
          float sum[kChannels] = {};
#pragma unroll 2
          for (int t = 0; t < across.taps; ++t) {
            const float w = weight_x[t * n + x];
#pragma unroll
            for (int c = 0; c < kChannels; ++c)
              sum[c] = fmaf(row[interleaved ? t * kChannels + c : c * run_pitch + t], w, sum[c]);
          }
#pragma unroll
          for (int c = 0; c < kChannels; ++c) image_[c * pitch_ + (top + r) * width_ + left + x] = sum[c];
        });
        __syncthreads();
        if (follows) *gray += sweep_pixels(*sweep, top * width_, (top + some) * width_);
      }
    }
    return follows;
  }

  // Where not even one output's inputs fit: the same sums, each weight computed where it is used.
  __device__ __forceinline__ void resize_directly(const uint8_t* image, int64_t crop, int64_t channel_stride,
                                                  int64_t row_stride, int64_t pixel_stride, const ResampledAxis& across,
                                                  const ResampledAxis& down) {
    for_each(kChannels * height_, width_, [&](int item, int x) {
      const int c = item / height_, y = item % height_, left = across.first(x), top = down.first(y);
      const float share_x = across.inverse_sum(x), share_y = down.inverse_sum(y);
      float sum = 0;
#pragma unroll 1
      for (int t = 0; t < across.taps; ++t) {
        float column = 0;
#pragma unroll 1
        for (int u = 0; u < down.taps; ++u) {
          const int64_t at = crop + (top + u) * row_stride + (left + t) * pixel_stride + c * channel_stride;
          column = fmaf(load_four(image, at, 0, 1).x, down.weight(u, y) * share_y, column);
        }
        sum = fmaf(column, across.weight(t, x) * share_x, sum);
      }
      image_[c * pitch_ + y * width_ + x] = sum;
    });
  }

  // Bytes through the cubic filter, which overshoots: as torchvision's, across first, and cut off between the two
  // directions and after them. What is not bytes is left as it is, there too.
  __device__ __forceinline__ void resize_cut_off(const uint8_t* crop, int64_t channel_stride, int64_t row_stride,
                                                 int64_t pixel_stride, const ResampledAxis& across,
                                                 const ResampledAxis& down) {
    // A tile: as many columns as leave room for the inputs of a row, then as many rows as there is room for.
    int columns = width_, rows = 0;
    for (;; columns = (columns + 1) / 2) {
      const int64_t room = a_.arena - int64_t(columns) * (across.taps + 1);
      for (rows = height_; rows > 0; rows /= 2) {
        const double reached = double(rows - 1) * down.scale + down.taps + 2;
        const int64_t span = int64_t(reached < down.in ? reached : down.in);
        if (span * kChannels * columns + int64_t(rows) * (down.taps + 1) <= room) break;
      }
      if (rows > 0 || columns == 1) break;
    }
    if (rows == 0) {
      cut_off_directly(crop, channel_stride, row_stride, pixel_stride, across, down);
      return;
    }
    float* const weight_x = arena_;
    int* const first_x = reinterpret_cast<int*>(weight_x + across.taps * columns);
    float* const weight_y = arena_ + columns * (across.taps + 1);
    int* const first_y = reinterpret_cast<int*>(weight_y + rows * down.taps);
    float* const stage = weight_y + rows * (down.taps + 1);  // [inputs of the rows, kChannels, columns]
    for (int left = 0; left < width_; left += columns) {
      const int n = min(columns, width_ - left);
      __syncthreads();
      across.build(left, n, first_x, weight_x);
      for (int top = 0; top < height_; top += rows) {
        const int some = min(rows, height_ - top);
        const int one = down.first(top), last = down.first(top + some - 1);
        const int begin = min(one, last), span = max(one, last) + down.taps - begin;
        down.build(top, some, first_y, weight_y);
        __syncthreads();
        for_each(span * kChannels, n, [&](int item, int x) {
          const int r = item / kChannels, c = item % kChannels;
          int64_t at = (begin + r) * row_stride + first_x[x] * pixel_stride + c * channel_stride;
          float sum = 0;
          for (int t = 0; t < across.taps; ++t, at += pixel_stride)
            sum = fmaf(float(crop[at]), weight_x[t * n + x], sum);
          stage[item * n + x] = clamp(sum, bound_);
        });
        __syncthreads();
        for_each(some * kChannels, n, [&](int item, int x) {
          const int r = item / kChannels, c = item % kChannels;
          const float* const column = stage + ((first_y[r] - begin) * kChannels + c) * n + x;
          float sum = 0;
          for (int t = 0; t < down.taps; ++t) sum = fmaf(column[t * kChannels * n], weight_y[t * some + r], sum);
          image_[c * pitch_ + (top + r) * width_ + left + x] = clamp(sum, bound_);
        });
        __syncthreads();
      }
    }
  }

  // Where not even one output's inputs fit.
  __device__ __forceinline__ void cut_off_directly(const uint8_t* crop, int64_t channel_stride, int64_t row_stride,
                                                   int64_t pixel_stride, const ResampledAxis& across,
                                                   const ResampledAxis& down) {
    for_each(kChannels * height_, width_, [&](int item, int x) {
      const int c = item / height_, y = item % height_, left = across.first(x), top = down.first(y);
      const float share_x = across.inverse_sum(x), share_y = down.inverse_sum(y);
      float sum = 0;
#pragma unroll 1
      for (int u = 0; u < down.taps; ++u) {
        float row = 0;
#pragma unroll 1
        for (int t = 0; t < across.taps; ++t) {
          const int64_t at = (top + u) * row_stride + (left + t) * pixel_stride + c * channel_stride;
          row = fmaf(float(crop[at]), across.weight(t, x) * share_x, row);
        }
        sum = fmaf(clamp(row, bound_), down.weight(u, y) * share_y, sum);
      }
      image_[c * pitch_ + y * width_ + x] = clamp(sum, bound_);
    });
  }

  // ---- warp ----

  // In double and in the order of the reference's operations, so that the nearest pixel is the reference's.
  __device__ __forceinline__ void warp() {
    double m[9];
#pragma unroll
    for (int i = 0; i < 9; ++i) m[i] = p_.map[i];
    const double last_x = width_ - 1, last_y = height_ - 1;
    for_each(height_, width_, [&](int row, int column) {
      const double x = column - last_x / 2, y = row - last_y / 2, depth = m[6] * x + m[7] * y + m[8];
      const double at_x = (m[0] * x + m[1] * y + m[2]) / depth + last_x / 2;
      const double at_y = (m[3] * x + m[4] * y + m[5]) / depth + last_y / 2;
      const int p = row * width_ + column;
      if (a_.nearest)
        warp_nearest(p, rint(at_x), rint(at_y), last_x, last_y);
      else
        warp_bilinear(p, at_x, at_y, last_x, last_y);
    });
    __syncthreads();
    swap_planes();
  }

  // NaN lies outside.
  static __device__ __forceinline__ bool inside(double x, double y, double last_x, double last_y) {
    return x >= 0 && x <= last_x && y >= 0 && y <= last_y;
  }

  __device__ __forceinline__ void warp_nearest(int p, double x, double y, double last_x, double last_y) {
    const bool in = inside(x, y, last_x, last_y);
    const int from = in ? int(y) * width_ + int(x) : 0;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const float fill = a_.filled ? a_.fill[channel_ + c] : 0.f;
      other_[c * pitch_ + p] = in ? image_[c * pitch_ + from] : fill;
    }
  }

  __device__ __forceinline__ void warp_bilinear(int p, double x, double y, double last_x, double last_y) {
    const double left = floor(x), upper = floor(y);
    const float right = float(x - left), lower = float(y - upper);  // weights of the far pixels
    float value[kChannels] = {}, mask = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const double px = left + k % 2, py = upper + k / 2;
      if (!inside(px, py, last_x, last_y)) continue;
      const float weight = (k % 2 ? right : 1 - right) * (k / 2 ? lower : 1 - lower);
      const int from = int(py) * width_ + int(px);
      mask += weight;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) value[c] += weight * image_[c * pitch_ + from];
    }
    // With a fill, what a position's weights fall short of 1 is the fill's.
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const float fill = a_.fill[channel_ + c];
      other_[c * pitch_ + p] = a_.filled ? (value[c] - fill) * mask + fill : value[c];
    }
  }

  // ---- colour ----

  // Pixels [begin, end), begin a multiple of 4 and so is end, unless it is the last: through the sweep's ops, four at a
  // time; the last sweep stores them, unless more is to come. The sum of this thread's gray, where contrast needs it.
  __device__ __forceinline__ float sweep_pixels(const Sweep& sweep, int begin, int end) {
    const Color::Factors factors =
        Color::factors(p_.brightness, p_.contrast, (1 - p_.contrast) * sweep.mean, p_.saturation, p_.hue, bound_);
    const bool ends = sweep.last && !blur_ && !whole_, gray = sweep.last && p_.grayscale != 0;
    float sum = 0;
    for (int at = begin + 4 * int(threadIdx.x); at < end; at += 4 * int(blockDim.x)) {
      float v[kChannels][4];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const float4 four = *reinterpret_cast<const float4*>(image_ + c * pitch_ + at);
        v[c][0] = four.x, v[c][1] = four.y, v[c][2] = four.z, v[c][3] = four.w;
      }
      for (int i = sweep.begin; i < sweep.end; ++i) Color::apply<kChannels, 4>(int(p_.color_op[i]), v, factors);
      const int count = min(4, end - at);
      if (!sweep.last) {
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (k < count)
            sum += kChannels == 3 ? Color::gray(v[0][k], v[kChannels / 2][k], v[kChannels - 1][k]) : v[0][k];
      }
      if constexpr (kChannels == 3) {
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (gray) v[0][k] = v[1][k] = v[2][k] = Color::gray(v[0][k], v[1][k], v[2][k]);
      }
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (ends)
          store(c, at, v[c], count, true);
        else
          *reinterpret_cast<float4*>(image_ + c * pitch_ + at) = make_float4(v[c][0], v[c][1], v[c][2], v[c][3]);
      }
    }
    return sum;
  }

  // ---- blur ----

  __device__ __forceinline__ void blur() {
    FASTCL_SHARED(BlurAxis, axes, [2]);
    __syncthreads();
    if (threadIdx.x < 64) {
      const bool down = threadIdx.x >= 32;
      BlurAxis axis;
      axis.measure(int(down ? p_.blur_radius_y : p_.blur_radius_x), p_.blur_sigma);
      if (threadIdx.x % 32 == 0) axes[down] = axis;
    }
    __syncthreads();
    const BlurAxis &across = axes[0], &down = axes[1];
    // A gray image's channels are one.
    const int channels = p_.grayscale != 0 && !whole_ ? 1 : kChannels;
    const int64_t table = (int64_t(across.reach) + down.reach + 2 + 3) / 4 * 4;
    const int groups = (height_ + 3) / 4, most = int((a_.arena - table) / (4 * int64_t(width_)));
    if (a_.arena < table || most == 0) {
      blur_directly(across, down, channels);
    } else {
      float *const weight_x = arena_, *const weight_y = arena_ + across.reach + 1, *const middle = arena_ + table;
      for (int d = int(threadIdx.x); d <= across.reach; d += int(blockDim.x)) weight_x[d] = across.weight(d);
      for (int d = int(threadIdx.x); d <= down.reach; d += int(blockDim.x)) weight_y[d] = down.weight(d);
      __syncthreads();
      for (int group = 0; group < channels * groups; group += most) {
        const int some = min(most, channels * groups - group);
        blur_down(group, some, groups, down.reach, weight_y, middle);
        __syncthreads();
        blur_across(group, some, groups, channels, across.reach, weight_x, middle);
        __syncthreads();
      }
    }
    __syncthreads();
    if (whole_) swap_planes();
  }

  // Four rows of a column at a time. middle: [some, 4, width]
  __device__ __forceinline__ void blur_down(int group, int some, int groups, int reach, const float* weight,
                                            float* middle) {
    for_each(some, width_, [&](int g, int x) {
      const int c = (group + g) / groups, y = (group + g) % groups * 4;
      const float* column = image_ + c * pitch_ + x;
      float sum[4] = {}, w[4] = {};
      for (int j = -reach; j <= reach + 3; ++j) {
        const float v = column[reflected(y + j, height_) * width_];
        w[3] = w[2], w[2] = w[1], w[1] = w[0];
        w[0] = j <= reach ? weight[j < 0 ? -j : j] : 0.f;
#pragma unroll
        for (int o = 0; o < 4; ++o) sum[o] = fmaf(v, w[o], sum[o]);
      }
#pragma unroll
      for (int o = 0; o < 4; ++o) middle[(g * 4 + o) * width_ + x] = sum[o];
    });
  }

  // Four columns of a row at a time.
  __device__ __forceinline__ void blur_across(int group, int some, int groups, int channels, int reach,
                                              const float* weight, const float* middle) {
    for_each(some * 4, (width_ + 3) / 4, [&](int r, int four) {
      const int c = (group + r / 4) / groups, y = (group + r / 4) % groups * 4 + r % 4, x = 4 * four;
      if (y >= height_) return;
      const float* row = middle + r * width_;
      float sum[4] = {}, w[4] = {};
      for (int j = -reach; j <= reach + 3; ++j) {
        const float v = row[reflected(x + j, width_)];
        w[3] = w[2], w[2] = w[1], w[1] = w[0];
        w[0] = j <= reach ? weight[j < 0 ? -j : j] : 0.f;
#pragma unroll
        for (int o = 0; o < 4; ++o) sum[o] = fmaf(v, w[o], sum[o]);
      }
      blurred(c, y * width_ + x, sum, min(4, width_ - x), channels);
    });
  }

  // Where not even one group of rows fits.
  __device__ __forceinline__ void blur_directly(const BlurAxis& across, const BlurAxis& down, int channels) {
    for_each(channels * height_, width_, [&](int item, int x) {
      const int c = item / height_, y = item % height_;
      float sum[4] = {};
#pragma unroll 1
      for (int j = -across.reach; j <= across.reach; ++j) {
        float column = 0;
#pragma unroll 1
        for (int i = -down.reach; i <= down.reach; ++i)
          column = fmaf(image_[c * pitch_ + reflected(y + i, height_) * width_ + reflected(x + j, width_)],
                        down.weight(i < 0 ? -i : i), column);
        sum[0] = fmaf(column, across.weight(j < 0 ? -j : j), sum[0]);
      }
      blurred(c, y * width_ + x, sum, 1, channels);
    });
  }

  __device__ __forceinline__ void blurred(int c, int at, const float (&v)[4], int count, int channels) {
    if (whole_) {
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (k < count) other_[c * pitch_ + at + k] = v[k];
      return;
    }
#pragma unroll 1
    for (int k = c; k < (channels < kChannels ? kChannels : c + 1); ++k) store(k, at, v, count, true);
  }

  // ---- what needs the image as a whole ----

  __device__ __forceinline__ void finish() {
    __syncthreads();
    if (p_.sharpen != 0 && height_ > 2 && width_ > 2) {
      for_each(kChannels * height_, width_, [&](int item, int x) {
        const int y = item % height_, at = item / height_ * pitch_ + y * width_ + x;
        float value = image_[at];
        if (y > 0 && y + 1 < height_ && x > 0 && x + 1 < width_) {
          const float *above = image_ + at - width_, *row = image_ + at, *below = image_ + at + width_;
          const float smooth =
              above[-1] + above[0] + above[1] + row[-1] + 5 * row[0] + row[1] + below[-1] + below[0] + below[1];
          value = sharpened(value, smooth, p_.sharpness, bound_, a_.bytes);
        }
        other_[at] = value;
      });
      __syncthreads();
      swap_planes();
    }
#pragma unroll 1
    for (int c = 0; c < kChannels; ++c) {
      float* const plane = image_ + c * pitch_;
      Extremes extremes = {INFINITY, -INFINITY};
      for_pixels([&](int p) {
        plane[p] = point_ops(plane[p]);
        extremes = {fminf(extremes.low, plane[p]), fmaxf(extremes.high, plane[p])};
      });
      if (p_.autocontrast != 0) {
        extremes = block_extremes(extremes);
        const Stretch stretch(extremes.low, extremes.high, bound_);
        for_pixels([&](int p) { plane[p] = stretch(plane[p]); });
      }
      if (p_.equalize != 0) equalize(plane);
    }
    __syncthreads();
#pragma unroll 1
    for (int c = 0; c < kChannels; ++c)
      for (int at = 4 * int(threadIdx.x); at < pixels_; at += 4 * int(blockDim.x)) {
        const float4 four = *reinterpret_cast<const float4*>(image_ + c * pitch_ + at);
        const float v[4] = {four.x, four.y, four.z, four.w};
        store(c, at, v, min(4, pixels_ - at), false);
      }
  }

  // Each pixel always by the same thread.
  template <class F>
  __device__ __forceinline__ void for_pixels(F&& f) {
    for (int p = int(threadIdx.x); p < pixels_; p += int(blockDim.x)) f(p);
  }

  __device__ __forceinline__ void equalize(float* plane) {
    FASTCL_SHARED(int, count, [256]);
    FASTCL_SHARED(float, to, [256]);
    const float scale = a_.bytes ? 1 : 255.999f, offset = a_.bytes ? byte_rounding(p_) : 0;
    __syncthreads();
    for (int i = int(threadIdx.x); i < 256; i += int(blockDim.x)) count[i] = 0;
    __syncthreads();
    for_pixels([&](int p) { atomicAdd(&count[histogram_level(plane[p], scale, offset)], 1); });
    __syncthreads();
    for (int i = int(threadIdx.x); i < 256; i += int(blockDim.x)) {
      int below = 0, brightest = 0;
      for (int j = 0; j < 256; ++j) {
        below += j < i ? count[j] : 0;
        brightest = count[j] ? j : brightest;
      }
      to[i] = equalized(i, below, (pixels_ - count[brightest]) / 255, bound_ / 255);
    }
    __syncthreads();
    for_pixels([&](int p) { plane[p] = to[histogram_level(plane[p], scale, offset)]; });
  }

  __device__ __forceinline__ float point_ops(float v) const {
    const float noise = step_noise(bound_);
    if (p_.invert != 0) v = bound_ - v;
    if (p_.posterize != 0) v = posterized(v, posterize_step(p_.posterize, bound_), p_.posterize, noise);
    if (p_.solarize != 0) v = v >= p_.solarize_threshold * bound_ - noise ? bound_ - v : v;
    return v;
  }

  // ---- the output ----

  // `count` pixels of a channel from `at` on: point ops where they are still to come, normalised, converted.
  __device__ __forceinline__ void store(int c, int at, const float (&values)[4], int count, bool points) {
    const int64_t to = place(c, at), step = a_.out_pixel_stride;
    const float factor = a_.factor[channel_ + c], add = a_.add[channel_ + c];
    float v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = points ? point_ops(values[k]) : values[k];
    const bool full = count == 4 && step == 1;
    if (a_.out_type == PixelType::kUint8) {
      uint8_t* out = static_cast<uint8_t*>(a_.out) + to;
      const float scale = 255 / bound_, offset = byte_rounding(p_);
      uint8_t b[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) b[k] = quantized(v[k], scale, offset);
      if (full && reinterpret_cast<uintptr_t>(out) % 4 == 0)
        *reinterpret_cast<uchar4*>(out) = make_uchar4(b[0], b[1], b[2], b[3]);
      else
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (k < count) out[k * step] = b[k];
      return;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = fmaf(v[k], factor, add);
    if (a_.out_type == PixelType::kFloat32) {
      float* out = static_cast<float*>(a_.out) + to;
      if (full && reinterpret_cast<uintptr_t>(out) % 16 == 0)
        *reinterpret_cast<float4*>(out) = make_float4(v[0], v[1], v[2], v[3]);
      else
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (k < count) out[k * step] = v[k];
      return;
    }
    uint16_t* out = static_cast<uint16_t*>(a_.out) + to;
    if (full && reinterpret_cast<uintptr_t>(out) % 8 == 0)
      *reinterpret_cast<ushort4*>(out) =
          make_ushort4(half_bits(v[0]), half_bits(v[1]), half_bits(v[2]), half_bits(v[3]));
    else
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (k < count) out[k * step] = half_bits(v[k]);
  }

  __device__ __forceinline__ uint16_t half_bits(float v) const {
    return a_.out_type == PixelType::kBFloat16 ? __bfloat16_as_ushort(__float2bfloat16(v))
                                               : __half_as_ushort(__float2half(v));
  }

  // Where pixel p of a channel of this block goes.
  __device__ __forceinline__ int64_t place(int c, int p) const {
    return out_ + c * a_.out_channel_stride + p * a_.out_pixel_stride;
  }

  // A finished value.
  __device__ __forceinline__ void put(int64_t to, float v) {
    if (a_.out_type == PixelType::kFloat32)
      static_cast<float*>(a_.out)[to] = v;
    else if (a_.out_type == PixelType::kUint8)
      static_cast<uint8_t*>(a_.out)[to] = uint8_t(clamp(v, 255.f));
    else
      static_cast<uint16_t*>(a_.out)[to] = half_bits(v);
  }

  __device__ __forceinline__ void erase() {
    const int top = int(p_.erase_top), left = int(p_.erase_left), rows = int(p_.erase_height);
    __syncthreads();
    for_each(kChannels * rows, int(p_.erase_width), [&](int item, int column) {
      const int c = item / rows, p = (top + item % rows) * width_ + left + column;
      float value = a_.erase[channel_ + c];
      if (p_.erase_seed > 0) {
        value = erase_noise(uint32_t(p_.erase_seed), p, a_.first_channel + channel_ + c);
        // A value given is cut off, as where torch turns it into a byte; noise is rounded.
        if (a_.out_type == PixelType::kUint8) value = rintf(value);
      }
      put(place(c, p), value);
    });
  }

  __device__ __forceinline__ void swap_planes() {
    float* const keep = image_;
    image_ = other_;
    other_ = keep;
  }

  const AugmentBatch& a_;
  const AugmentParams& p_;
  const int height_, width_, pixels_, pitch_, channel_;  // channel_: of the launch's, the first of this block
  const int64_t out_;                                    // where its output begins
  float *image_, *other_;
  float* const arena_;
  const float bound_;  // the largest value: 255 or 1, as the images'
  const bool blur_, whole_;
};

}  // namespace fastcl
