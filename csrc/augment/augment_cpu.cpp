#include <algorithm>
#include <cmath>
#include <cstring>

#include "augment/augment.h"
#include "augment/augment_math.h"
#include "augment/augment_rows.h"
#include "common/buffer.h"
#include "common/float_types.h"
#include "common/parallel.h"
#include "common/portable.h"

namespace fastcl {
namespace {

const AugmentRows& augment_rows() {
  static const AugmentRows& rows = *[] {
    for (const auto rows_of : {augment_rows_avx512, augment_rows_avx2})
      if (const AugmentRows* found = rows_of()) return found;
    return augment_rows_portable();
  }();
  return rows;
}

// ------------------------------------------------------------------------------------------------------ rows
// What is left to the compiler: plain loops, a row at a time.

// One row of pixels into its planes, `pitch` apart.
FASTCL_INLINE void split_loop(const float* in, int64_t channels, int64_t n, float* __restrict out, int64_t pitch) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < n; ++i) out[c * pitch + i] = in[i * channels + c];
}
FASTCL_MULTIVERSION void split_channels(const float* in, int64_t channels, int64_t n, float* __restrict out,
                                        int64_t pitch) {
  if (channels == 3)
    split_loop(in, 3, n, out, pitch);
  else
    split_loop(in, channels, n, out, pitch);
}

FASTCL_INLINE float clamp(float value, float bound) {
  value = value > 0.f ? value : 0.f;
  return value < bound ? value : bound;
}

FASTCL_MULTIVERSION void quantize_row(const float* in, int64_t n, float scale, float offset, uint8_t* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = uint8_t(int32_t(clamp(in[i] * scale + offset, 255.f)));
}

// Where the pixels of the output's row `y` come from; all counted from the images' centres. In double and in the order
// of the reference's operations, so that the nearest pixel is the reference's.
FASTCL_MULTIVERSION void source_positions(const double* m, double left, double y, int64_t n, double middle_x,
                                          double middle_y, double* __restrict source_x, double* __restrict source_y) {
  const bool affine = m[6] == 0 && m[7] == 0 && m[8] == 1;  // a division by 1 changes no bit
  for (int64_t i = 0; i < n; ++i) {
    const double x = double(int32_t(i)) + left;
    source_x[i] = m[0] * x + m[1] * y + m[2];
    source_y[i] = m[3] * x + m[4] * y + m[5];
  }
  for (int64_t i = 0; i < n && !affine; ++i) {
    const double depth = m[6] * (double(int32_t(i)) + left) + m[7] * y + m[8];
    source_x[i] /= depth;
    source_y[i] /= depth;
  }
  for (int64_t i = 0; i < n; ++i) {
    source_x[i] += middle_x;
    source_y[i] += middle_y;
  }
}

// Where the nearest pixels lie in their plane; -1: outside. NaN lies outside.
FASTCL_MULTIVERSION void nearest_pixels(const double* x, const double* y, int64_t n, double last_x, double last_y,
                                        int32_t width, int32_t* __restrict from) {
  for (int64_t i = 0; i < n; ++i) {
    const double px = std::rint(x[i]), py = std::rint(y[i]);
    const bool in = (px >= 0) & (px <= last_x) & (py >= 0) & (py <= last_y);
    from[i] = in ? int32_t(in ? py : 0.0) * width + int32_t(in ? px : 0.0) : -1;
  }
}

FASTCL_MULTIVERSION void take_nearest(const float* in, const int32_t* from, int64_t n, float fill,
                                      float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    const float value = in[from[i] < 0 ? 0 : from[i]];
    out[i] = from[i] < 0 ? fill : value;
  }
}

// The four pixels around each position and their weights, [4, n]: 0 outside.
FASTCL_MULTIVERSION void bilinear_pixels(const double* x, const double* y, int64_t n, double last_x, double last_y,
                                         int32_t width, int32_t* __restrict from, float* __restrict weight) {
  for (int64_t k = 0; k < 4; ++k)
    for (int64_t i = 0; i < n; ++i) {
      const double left = std::floor(x[i]), upper = std::floor(y[i]);
      const float right = float(x[i] - left), lower = float(y[i] - upper);  // weights of the far pixels
      const double px = left + double(k % 2), py = upper + double(k / 2);
      const bool in = (px >= 0) & (px <= last_x) & (py >= 0) & (py <= last_y);
      from[k * n + i] = in ? int32_t(in ? py : 0.0) * width + int32_t(in ? px : 0.0) : 0;
      weight[k * n + i] = in ? (k % 2 ? right : 1 - right) * (k / 2 ? lower : 1 - lower) : 0.f;
    }
}

// With a fill, what a position's weights fall short of 1 is the fill's.
FASTCL_MULTIVERSION void take_bilinear(const float* in, const int32_t* from, const float* weight, int64_t n,
                                       bool filled, float fill, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    float value = 0, mask = 0;
    for (int64_t k = 0; k < 4; ++k) {
      value += weight[k * n + i] * in[from[k * n + i]];
      mask += weight[k * n + i];
    }
    out[i] = filled ? (value - fill) * mask + fill : value;
  }
}

// ---------------------------------------------------------------------------------------------------- tables

int64_t resize_taps(int64_t in, int64_t out) {
  if (in == out) return 1;  // copied
  return std::min(in, int64_t(std::ceil(2 * std::max(double(in) / double(out), 1.0))));
}

// Antialiased bilinear resampling along one axis, as torchvision and PIL: a triangle of half width max(in / out, 1).
// All taps lie inside; those that the triangle does not reach weigh 0. Outputs beyond `out` repeat the last.
FASTCL_MULTIVERSION void triangle_taps(int64_t in, int64_t out, bool flip, int64_t taps, int64_t stride,
                                       int32_t* __restrict first, float* __restrict weight, double* __restrict center,
                                       double* __restrict sum) {
  const double scale = double(in) / double(out), support = std::max(scale, 1.0), inverse = 1 / support;
  const double last = double(in - taps);
  for (int64_t i = 0; i < stride; ++i) {
    const int32_t kept = int32_t(i < out ? i : out - 1), at = flip ? int32_t(out) - 1 - kept : kept;
    center[i] = scale * (double(at) + 0.5);
    const double start = std::max(center[i] - support + 0.5, 0.0);
    first[i] = int32_t(start < last ? start : last);
    center[i] -= 0.5;
    sum[i] = 0;
  }
  if (taps == 1) {
    for (int64_t i = 0; i < stride; ++i) {
      first[i] = in == out ? int32_t(center[i]) : first[i];
      weight[i] = 1;
    }
    return;
  }
  for (int64_t t = 0; t < taps; ++t) {
    float* __restrict w = weight + t * stride;
    for (int64_t i = 0; i < stride; ++i) {
      const double value = 1 - std::fabs(double(first[i] + int32_t(t)) - center[i]) * inverse;
      w[i] = float(value > 0 ? value : 0);
      sum[i] += value > 0 ? value : 0;
    }
  }
  for (int64_t i = 0; i < stride; ++i) sum[i] = 1 / sum[i];
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t i = 0; i < stride; ++i) weight[t * stride + i] = float(double(weight[t * stride + i]) * sum[i]);
}

// The memory of one axis' taps, for any crop of images of `in_most` pixels.
struct Axis {
  Axis(int64_t in_most, int64_t out)
      : first(row_steps(out)),
        weight(std::max(std::min<int64_t>(in_most, 2), resize_taps(in_most, out)) * row_steps(out)),
        center(row_steps(out)),
        sum(row_steps(out)) {}

  void build(int64_t in, int64_t out, bool flip) {
    table = {out, row_steps(out), resize_taps(in, out), first.get(), weight.get()};
    triangle_taps(in, out, flip, table.taps, table.stride, first.get(), weight.get(), center.get(), sum.get());
  }

  Buffer<int32_t> first;
  Buffer<float> weight;
  Buffer<double> center, sum;
  ResizeTaps table{};
};

// A Gaussian kernel; taps below float's precision are left out. Zeros stand around it, as AugmentRows::blur_y wants.
struct Gaussian {
  explicit Gaussian(int64_t radius_most) : memory(2 * radius_most + 1 + 2 * kBlurRows) {}

  void build(int64_t radius, double sigma) {
    const auto tap = [&](int64_t d) { return std::exp(-double(d * d) / (2 * sigma * sigma)); };
    double sum = 1;
    reach = 0;
    for (int64_t d = 1; d <= radius; ++d) {
      const double value = tap(d);
      sum += 2 * value;
      if (!(value > 1e-9)) break;
      reach = d;
    }
    std::memset(memory.get(), 0, size_t(2 * reach + 1 + 2 * kBlurRows) * sizeof(float));
    weight = memory.get() + kBlurRows;
    for (int64_t d = 0; d <= reach; ++d) weight[reach - d] = weight[reach + d] = float(tap(d) / sum);
  }

  Buffer<float> memory;
  int64_t reach = 0;        // taps on either side of the middle
  float* weight = nullptr;  // [2 reach + 1]
};

// ---------------------------------------------------------------------------------------------------- stages

constexpr int64_t kStreamBytes = 16 << 20;  // float32 outputs of this size or more are written past the caches
constexpr int64_t kBand = 1024;             // pixels that go through the colour ops together: they stay in L1

// One thread's buffers, for every image of a batch.
struct Scratch {
  explicit Scratch(const AugmentApply& a)
      : plane(row_steps(a.out_height * a.out_width) + kRowStep),
        pitch(row_steps(a.width) + 3 * kRowStep),
        padded_pitch(row_steps(3 * a.out_width) + 2 * kRowStep),
        height(a.height),
        image(a.channels * plane),
        source_row(a.channels * pitch),
        pixels(a.channels_last ? row_steps(a.channels * a.width) : 0),
        line(row_steps(std::max(a.out_width, kBand))),
        padded(kBlurRows * padded_pitch),
        axis_x(a.width, a.out_width),
        axis_y(a.height, a.out_height),
        kernel_x(a.out_width),
        kernel_y(a.out_height),
        blur_rows(a.out_height * 2 + 2 * kBlurRows) {}

  int64_t plane;             // from one channel of `image` to the next
  int64_t pitch;             // from one channel of `source_row` to the next
  int64_t padded_pitch;      // from one row of `padded` to the next
  int64_t height;            // of the highest image
  Buffer<float> image;       // [channels, plane]
  Buffer<float> source_row;  // one output row before the horizontal pass: [channels, pitch]
  Buffer<float> pixels;      // the same where the channels come last: [width, channels]
  Buffer<float> line;        // what is stored as half
  Buffer<float> padded;      // [kBlurRows, padded_pitch]: rows with their reflected ends
  Axis axis_x, axis_y;
  Gaussian kernel_x, kernel_y;
  Buffer<const float*> blur_rows;
  // Of narrow crops and of warps; made when there is one.
  Buffer<float> narrow;  // [runs, crop_height, kRowStep] pixels
  Buffer<float> warped, weight;
  Buffer<double> position;  // of one output row's sources: x, then y
  Buffer<int32_t> from;
  bool narrows = false, warps = false;
};

// A sweep over the image through colour ops. Contrast needs the mean gray of what is before it, so it starts a new
// sweep, and the sweep before it sums that up.
struct Sweep {
  int begin, end;    // of color_op
  bool contrast;     // comes first
  float mean;        // of the gray before the contrast
  bool sums, last;   // a contrast follows, or nothing
  double gray = 0;   // summed
  int64_t done = 0;  // pixels
};

// One image on its way through the stages.
class View {
 public:
  View(const AugmentApply& a, const AugmentRows& rows, const AugmentParams& p, int64_t number, bool stream, Scratch* s)
      : a_(a),
        rows_(rows),
        p_(p),
        number_(number),
        s_(*s),
        height_(a.out_height),
        width_(a.out_width),
        pixels_(height_ * width_),
        stream_(stream),
        blur_(p.blur_sigma > 0) {
    bound_ = a.image_type == PixelType::kUint8 ? 255.f : 1.f;
  }

  void run() {
    Sweep sweep = next_sweep(0, 0);
    const bool warps = !identity_map();
    // Without a warp, a row's colours are changed while it is in L1.
    Sweep* follow = warps ? nullptr : &sweep;
    if (a_.image_type == PixelType::kUint8)
      crop_resize_flip<uint8_t>(rows_.blend_bytes, follow);
    else
      crop_resize_flip<float>(rows_.blend_floats, follow);
    if (warps) warp();
    advance(&sweep, pixels_);
    while (!sweep.last) {
      sweep = next_sweep(sweep.end + 1, sweep.gray / double(pixels_));
      advance(&sweep, pixels_);
    }
    if (blur_) blur();
  }

 private:
  float* channel(int64_t c) { return s_.image.get() + c * s_.plane; }

  template <class Pixel, class Blend>
  void crop_resize_flip(Blend blend, Sweep* sweep) {
    const int64_t crop_height = int64_t(p_.crop_height), crop_width = int64_t(p_.crop_width), channels = a_.channels;
    s_.axis_x.build(crop_width, width_, p_.hflip != 0);
    s_.axis_y.build(crop_height, height_, p_.vflip != 0);
    const ResizeTaps &across = s_.axis_x.table, &down = s_.axis_y.table;
    const int64_t step = a_.channels_last ? channels : 1;  // from a pixel to its right neighbour
    const int64_t row_pitch = a_.width * step;
    const Pixel* image = static_cast<const Pixel*>(a_.images) + number_ * channels * a_.height * a_.width;
    const Pixel* crop = image + (int64_t(p_.crop_top) * a_.width + int64_t(p_.crop_left)) * step;
    // A crop's row is one run of memory for each channel, or one for all where the channels come last.
    const int64_t runs = a_.channels_last ? 1 : channels, run = crop_width * step;
    float* blended = a_.channels_last ? s_.pixels.get() : s_.source_row.get();
    BlendRows<Pixel> rows = {crop,    row_pitch, a_.height * a_.width, nullptr, down.stride, down.taps, runs, run,
                             blended, s_.pitch};
    if (run < kRowStep) copy_narrow(crop_height, &rows);
    const Pixel* top = rows.in;
    for (int64_t y = 0; y < height_; ++y) {
      rows.in = top + down.first[y] * rows.pitch;
      rows.weight = down.weight + y;
      blend(rows);
      if (a_.channels_last) split_channels(blended, channels, crop_width, s_.source_row.get(), s_.pitch);
      rows_.resize(across, s_.source_row.get(), s_.pitch, channels, channel(0) + y * width_, s_.plane);
      // What the last vector wrote beyond the row, the next row overwrites: it must not be used before.
      if (sweep && (y + 1) * width_ - sweep->done >= kBand) advance(sweep, (y + 1) * width_ / kRowStep * kRowStep);
    }
  }

  // Lets the runs of a narrow crop be read a whole vector at a time: not beyond the images, but from a copy.
  template <class Pixel>
  void copy_narrow(int64_t crop_height, BlendRows<Pixel>* rows) {
    if (!s_.narrows) {
      s_.narrow = Buffer<float>(a_.channels * s_.height * kRowStep);
      s_.narrows = true;
    }
    Pixel* copy = reinterpret_cast<Pixel*>(s_.narrow.get());
    for (int64_t r = 0; r < rows->runs; ++r)
      for (int64_t y = 0; y < crop_height; ++y) {
        const Pixel* in = rows->in + r * rows->run_pitch + y * rows->pitch;
        Pixel* to = copy + (r * crop_height + y) * kRowStep;
        std::fill(to, to + kRowStep, Pixel(0));
        std::copy(in, in + rows->n, to);
      }
    rows->in = copy;
    rows->pitch = kRowStep;
    rows->run_pitch = crop_height * kRowStep;
    rows->n = kRowStep;
  }

  bool identity_map() const {
    for (int i = 0; i < 9; ++i)
      if (p_.map[i] != (i % 4 == 0 ? 1.f : 0.f)) return false;
    return true;
  }

  void warp() {
    if (!s_.warps) {
      s_.warped = Buffer<float>(a_.channels * s_.plane);
      s_.weight = Buffer<float>(4 * width_);
      s_.position = Buffer<double>(2 * width_);
      s_.from = Buffer<int32_t>(4 * width_);
      s_.warps = true;
    }
    double *source_x = s_.position.get(), *source_y = source_x + width_;
    const double last_x = double(width_ - 1), last_y = double(height_ - 1);
    double m[9];
    std::copy(p_.map, p_.map + 9, m);
    for (int64_t y = 0; y < height_; ++y) {
      source_positions(m, -last_x / 2, double(y) - last_y / 2, width_, last_x / 2, last_y / 2, source_x, source_y);
      const auto pixels = a_.nearest ? nullptr : s_.weight.get();
      if (a_.nearest)
        nearest_pixels(source_x, source_y, width_, last_x, last_y, int32_t(width_), s_.from.get());
      else
        bilinear_pixels(source_x, source_y, width_, last_x, last_y, int32_t(width_), s_.from.get(), pixels);
      for (int64_t c = 0; c < a_.channels; ++c) {
        const float fill = a_.fill ? a_.fill[c] : 0.f;
        float* out = s_.warped.get() + c * s_.plane + y * width_;
        if (a_.nearest)
          take_nearest(channel(c), s_.from.get(), width_, fill, out);
        else
          take_bilinear(channel(c), s_.from.get(), pixels, width_, a_.fill != nullptr, fill, out);
      }
    }
    std::swap(s_.image, s_.warped);
  }

  Sweep next_sweep(int begin, double mean) const {
    int end = begin;
    while (end < 4 && int(p_.color_op[end]) != kContrast) ++end;
    return {begin, end, begin > 0, float(mean), end < 4, end == 4};
  }

  // Takes the pixels up to `ready`, which is a multiple of kRowStep or all of them, through the sweep.
  void advance(Sweep* sweep, int64_t ready) {
    while (sweep->done < ready) {
      const int64_t n = std::min(kBand, ready - sweep->done);
      Planes band{{channel(0) + sweep->done, nullptr, nullptr}, std::min<int64_t>(a_.channels, 3), n};
      for (int64_t c = 1; c < band.channels; ++c) band.channel[c] = channel(c) + sweep->done;
      if (sweep->contrast) rows_.scale(band, p_.contrast, (1 - p_.contrast) * sweep->mean, bound_);
      for (int i = sweep->begin; i < sweep->end; ++i) color_op(int(p_.color_op[i]), band);
      if (sweep->sums) sweep->gray += rows_.gray_sum(band);
      if (sweep->last && p_.grayscale != 0 && a_.channels == 3) rows_.to_gray(band);
      if (sweep->last && !blur_ && p_.solarize != 0)
        for (int64_t c = 0; c < a_.channels; ++c) solarize(channel(c) + sweep->done, n);
      if (sweep->last && !blur_)
        for (int64_t c = 0; c < a_.channels; ++c) store(c, sweep->done, channel(c) + sweep->done, n);
      sweep->done += n;
    }
  }

  void color_op(int code, const Planes& band) {
    if (code == kBrightness) rows_.scale(band, p_.brightness, 0, bound_);
    if (band.channels != 3) return;
    if (code == kSaturation) rows_.saturate(band, p_.saturation, bound_);
    if (code == kHue) rows_.shift_hue(band, p_.hue);
  }

  // Just below the threshold lies what float's noise alone keeps from it.
  void solarize(float* values, int64_t n) {
    rows_.solarize(values, n, p_.solarize_threshold * bound_ - bound_ * 0x1p-18f, bound_);
  }

  // Normalises and stores n pixels of channel c from pixel `at` on.
  void store(int64_t c, int64_t at, const float* values, int64_t n) {
    const Target to = target(c, at);
    if (a_.out_type == PixelType::kUint8) {
      // As torchvision's last op: a colour op cuts off (just above float's noise), the others round.
      bool colored = p_.grayscale != 0;
      for (float code : p_.color_op) colored |= code != 0;
      const float offset = colored && !blur_ ? 0x1p-10f : 0.5f;
      quantize_row(values, n, 255 / bound_, offset, static_cast<uint8_t*>(a_.out) + to.at);
      return;
    }
    const bool direct = a_.out_type == PixelType::kFloat32;
    float* line = direct ? static_cast<float*>(a_.out) + to.at : s_.line.get();
    rows_.normalize(values, n, to.factor, to.add, direct && aligned(line), line);
    store_half(line, n, to.at);
  }

  void store_half(const float* line, int64_t n, int64_t at) {
    if (a_.out_type == PixelType::kBFloat16) store_floats(line, n, FloatType::kBFloat16, at, a_.out);
    if (a_.out_type == PixelType::kFloat16) store_floats(line, n, FloatType::kFloat16, at, a_.out);
  }

  // Where channel c's pixel `at` goes in the output, and how it is normalised.
  struct Target {
    int64_t at;
    float factor, add;
  };
  Target target(int64_t c, int64_t at) const {
    return {(number_ * a_.channels + c) * pixels_ + at, a_.inverse_std[c] / bound_, -a_.mean[c] * a_.inverse_std[c]};
  }
  bool aligned(const float* out) const { return stream_ && reinterpret_cast<uintptr_t>(out) % 64 == 0; }

  // Blurs, normalises and stores, kBlurRows rows at a time.
  void blur() {
    s_.kernel_x.build(int64_t(p_.blur_radius_x), p_.blur_sigma);
    s_.kernel_y.build(int64_t(p_.blur_radius_y), p_.blur_sigma);
    const int64_t reach_x = s_.kernel_x.reach, reach_y = s_.kernel_y.reach;
    const auto reflect = [](int64_t at, int64_t n) { return at < 0 ? -at : at >= n ? 2 * (n - 1) - at : at; };
    const int64_t left = row_steps(reach_x);  // where a padded row begins
    float* middle[kBlurRows];
    for (int64_t o = 0; o < kBlurRows; ++o) middle[o] = s_.padded.get() + o * s_.padded_pitch + left;
    // Blur and normalisation are one step, unless something comes between them.
    const bool apart = a_.out_type == PixelType::kUint8 || p_.solarize != 0;
    const bool floats = a_.out_type == PixelType::kFloat32 && !apart;
    for (int64_t c = 0; c < a_.channels; ++c)
      for (int64_t y = 0; y < height_; y += kBlurRows) {
        const int64_t some = std::min<int64_t>(kBlurRows, height_ - y), count = 2 * reach_y + some;
        for (int64_t j = 0; j < count; ++j) s_.blur_rows[j] = channel(c) + reflect(y + j - reach_y, height_) * width_;
        rows_.blur_y(s_.blur_rows.get(), count, s_.kernel_y.weight, width_, middle);
        for (int64_t o = 0; o < some; ++o) {
          float* row = middle[o];
          for (int64_t d = 1; d <= reach_x; ++d) {
            row[-d] = row[reflect(-d, width_)];
            row[width_ - 1 + d] = row[reflect(width_ - 1 + d, width_)];
          }
          const Target to = target(c, (y + o) * width_);
          float* line = floats ? static_cast<float*>(a_.out) + to.at : s_.line.get();
          rows_.blur_x(row - reach_x, s_.kernel_x.weight, 2 * reach_x + 1, width_, apart ? 1 : to.factor,
                       apart ? 0 : to.add, floats && aligned(line), line);
          if (p_.solarize != 0) solarize(line, width_);
          if (apart)
            store(c, (y + o) * width_, line, width_);
          else
            store_half(line, width_, to.at);
        }
      }
  }

  const AugmentApply& a_;
  const AugmentRows& rows_;
  const AugmentParams& p_;
  const int64_t number_;
  Scratch& s_;
  const int64_t height_, width_, pixels_;
  const bool stream_;  // whether float32 output goes past the caches
  const bool blur_;
  float bound_;  // the largest value: 255 or 1, as the images'
};

int64_t pixel_bytes(PixelType type) { return type == PixelType::kUint8 ? 1 : type == PixelType::kFloat32 ? 4 : 2; }

}  // namespace

void augment_sample(const AugmentSample& problem) {
  parallel_for(problem.n, 256, [&](int64_t begin, int64_t end) {
    AugmentStream stream = problem.stream;
    for (int64_t i = begin; i < end; ++i) {
      if (problem.shapes) {
        stream.height = problem.shapes[3 * i];
        stream.width = problem.shapes[3 * i + 1];
      }
      problem.params[i] = draw_params(problem.recipe, stream, problem.index[i]);
    }
  });
}

void augment_apply(const AugmentApply& problem) {
  const AugmentRows& rows = augment_rows();
  // An output that no cache holds need not push the images out of it.
  const int64_t pixels = problem.channels * problem.out_height * problem.out_width;
  const bool stream = problem.n * pixels * int64_t(sizeof(float)) >= kStreamBytes;
  parallel_for(problem.n, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(problem);
    for (int64_t i = begin; i < end; ++i) {
      if (problem.offsets) {
        AugmentApply one = image_alone(problem, i);
        one.out = static_cast<char*>(problem.out) + i * pixels * pixel_bytes(problem.out_type);
        View(one, rows, problem.params[i], 0, stream, &scratch).run();
      } else {
        View(problem, rows, problem.params[i], i, stream, &scratch).run();
      }
    }
    if (stream) rows.stream_end();
  });
}

}  // namespace fastcl
