#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "augment/augment.h"
#include "augment/augment_math.h"
#include "augment/augment_plain.h"
#include "augment/augment_rows.h"
#include "augment/augment_tables.h"
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

constexpr int64_t kStreamBytes = 16 << 20;     // float32 outputs of this size or more are written past the caches
constexpr int64_t kBand = 1024;                // pixels that go through the colour ops together: they stay in L1
constexpr int64_t kRowThreadPixels = 1 << 14;  // fewer pixels of a view are not worth several threads

// What one image's view needs as a whole.
struct Planes {
  explicit Planes(const AugmentApply& a)
      : plane(row_steps(a.out_height * a.out_width) + kRowStep),
        height(a.height),
        image(a.channels * plane),
        sums((a.out_height * a.out_width + kBand - 1) / kBand),
        axis_x(a.width, a.out_width, a.bicubic),
        axis_y(a.height, a.out_height, a.bicubic),
        kernel_x(a.out_width),
        kernel_y(a.out_height) {}

  // Memory for a second image, made when it is asked for first.
  float* other(int64_t channels) {
    if (!has_other) spare = Buffer<float>(channels * plane);
    has_other = true;
    return spare.get();
  }

  // Memory for a finished view.
  float* finished(int64_t values) {
    if (!has_joined) joined = Buffer<float>(values);
    has_joined = true;
    return joined.get();
  }

  int64_t plane;          // from one channel of `image` to the next
  int64_t height;         // of the highest image
  Buffer<float> image;    // [channels, plane]
  Buffer<float> spare;    // likewise
  Buffer<double> sums;    // of the gray of each band
  Buffer<float> narrow;   // a narrow crop: [runs, crop_height, kRowStep] pixels
  Buffer<float> between;  // bytes through the cubic filter: [channels, crop_height, row_steps(width)], resized across
  Buffer<float> joined;   // a view whose channels are to come last
  bool has_other = false, has_narrow = false, has_between = false, has_joined = false;
  Axis axis_x, axis_y;
  Gaussian kernel_x, kernel_y;
};

// One thread's rows.
struct Lines {
  explicit Lines(const AugmentApply& a)
      : pitch(row_steps(a.width) + 3 * kRowStep),
        padded_pitch(row_steps(3 * a.out_width) + 4 * kRowStep),
        line_pitch(row_steps(std::max(a.out_width, kBand))),
        source_row(a.channels * pitch),
        pixels(a.channels_last ? row_steps(a.channels * a.width) : 0),
        line(kBlurRows * line_pitch),
        half(kBand),
        padded(kBlurRows * padded_pitch),
        blur_rows(a.out_height * 2 + 2 * kBlurRows) {}

  int64_t pitch;             // from one channel of `source_row` to the next
  int64_t padded_pitch;      // from one row of `padded` to the next
  int64_t line_pitch;        // from one row of `line` to the next
  Buffer<float> source_row;  // one output row before the horizontal pass: [channels, pitch]
  Buffer<float> pixels;      // the same where the channels come last: [width, channels]
  Buffer<float> line;        // blurred rows, or bands, that are not stored as they are
  Buffer<float> half;        // what is stored as half
  Buffer<float> padded;      // [kBlurRows, padded_pitch]: rows with their reflected ends
  Buffer<const float*> blur_rows;
  // Of warps; made when there is one.
  Buffer<float> weight;
  Buffer<double> position;  // of one output row's sources: x, then y
  Buffer<int32_t> from;
  bool warps = false;
};

// A sweep over the image through colour ops. Contrast needs the mean gray of what is before it, so it starts a new
// sweep, and the sweep before it sums that up.
struct Sweep {
  int begin, end;    // of color_op, the contrast that begins it included
  float mean;        // of the gray before that contrast
  bool sums, last;   // a contrast follows, or nothing
  int64_t done = 0;  // pixels
};

// One view of one image on its way through the stages. `lines`: of the one thread that does it all; null: the stages
// share their rows out to all threads. The arithmetic is the same.
class View {
 public:
  View(const AugmentApply& a, const AugmentRows& rows, int64_t number, bool stream, Planes* planes, Lines* lines)
      : a_(a),
        rows_(rows),
        p_(a.params[number]),
        number_(number),
        s_(*planes),
        lines_(lines),
        height_(a.out_height),
        width_(a.out_width),
        pixels_(height_ * width_),
        stream_(stream),
        blur_(p_.blur_sigma > 0),
        whole_(p_.sharpen != 0 || p_.autocontrast != 0 || p_.equalize != 0),
        point_ops_(p_.invert != 0 || p_.posterize != 0 || p_.solarize != 0) {
    bound_ = a.image_type == PixelType::kUint8 ? 255.f : 1.f;
    rounding_ = byte_rounding(p_);
  }

  void run() {
    Sweep sweep = next_sweep(0, false, 0);
    const bool warps = !is_identity_map(p_);
    // Without a warp, and on one thread, a row's colours are changed while it is in L1.
    Sweep* follow = warps || !lines_ ? nullptr : &sweep;
    if (a_.image_type == PixelType::kUint8)
      crop_resize_flip<uint8_t>(rows_.blend_bytes, follow);
    else
      crop_resize_flip<float>(rows_.blend_floats, follow);
    if (warps) warp();
    for (;;) {
      sweep_to(&sweep, pixels_);
      if (sweep.last) break;
      double gray = 0;
      for (int64_t band = 0; band * kBand < pixels_; ++band) gray += s_.sums[band];
      sweep = next_sweep(sweep.end, true, gray / double(pixels_));
    }
    if (blur_) blur();
    if (whole_) finish();
    if (p_.erase_height > 0 && p_.erase_width > 0) erase();
  }

 private:
  float* channel(int64_t c) { return s_.image.get() + c * s_.plane; }

  // Calls f(lines, begin, end) over ranges that cover [0, n).
  template <class F>
  void each(int64_t n, int64_t grain, F&& f) {
    if (lines_) return f(*lines_, 0, n);
    parallel_for(n, grain, [&](int64_t begin, int64_t end) {
      Lines lines(a_);
      f(lines, begin, end);
      if (stream_) rows_.stream_end();
    });
  }
  // So many rows of the output for each thread at least.
  int64_t row_grain() const { return std::max<int64_t>(1, kRowThreadPixels / 4 / width_); }

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
    BlendRows<Pixel> source = {crop,    row_pitch, a_.height * a_.width, nullptr, down.stride, down.taps, runs, run,
                               nullptr, 0};
    if (run < kRowStep) copy_narrow(crop_height, &source);
    if constexpr (sizeof(Pixel) == 1)
      if (a_.bicubic && (crop_height != height_ || crop_width != width_))
        return resize_cut_off(source, crop_height, crop_width);
    each(height_, row_grain(), [&](Lines& lines, int64_t begin, int64_t end) {
      BlendRows<Pixel> rows = source;
      rows.out = a_.channels_last ? lines.pixels.get() : lines.source_row.get();
      rows.out_pitch = lines.pitch;
      // The last vector of a row writes beyond it: into the next row, which must not be another thread's.
      float* last_row = lines_ ? nullptr : lines.line.get();
      for (int64_t y = begin; y < end; ++y) {
        rows.in = source.in + down.first[y] * source.pitch;
        rows.weight = down.weight + y;
        blend(rows);
        const float* row = lines.source_row.get();
        if (a_.channels_last) split_channels(rows.out, channels, crop_width, lines.source_row.get(), lines.pitch);
        float* out = channel(0) + y * width_;
        if (last_row && y + 1 == end && end < height_) {
          for (int64_t c = 0; c < channels; ++c) {
            rows_.resize(across, row + c * lines.pitch, lines.pitch, 1, last_row, 0);
            std::copy(last_row, last_row + width_, out + c * s_.plane);
          }
        } else {
          rows_.resize(across, row, lines.pitch, channels, out, s_.plane);
        }
        // What the last vector wrote beyond the row, the next row overwrites: it must not be used before.
        if (sweep) sweep_to(sweep, (y + 1) * width_ / kBand * kBand);
      }
    });
  }

  // Bytes through the cubic filter, which overshoots: as torchvision's, across first, and cut off between the two
  // directions and after them. What is not bytes is left as it is, there too.
  void resize_cut_off(const BlendRows<uint8_t>& source, int64_t crop_height, int64_t crop_width) {
    const ResizeTaps &across = s_.axis_x.table, &down = s_.axis_y.table;
    const int64_t channels = a_.channels, pitch = row_steps(width_);
    if (!s_.has_between) s_.between = Buffer<float>(channels * s_.height * pitch);
    s_.has_between = true;
    const float one = 1;
    each(crop_height, row_grain(), [&](Lines& lines, int64_t begin, int64_t end) {
      BlendRows<uint8_t> rows = source;
      rows.out = a_.channels_last ? lines.pixels.get() : lines.source_row.get();
      rows.out_pitch = lines.pitch;
      rows.weight = &one;
      rows.taps = 1;
      for (int64_t y = begin; y < end; ++y) {
        rows.in = source.in + y * source.pitch;
        rows_.blend_bytes(rows);
        if (a_.channels_last) split_channels(rows.out, channels, crop_width, lines.source_row.get(), lines.pitch);
        float* out = s_.between.get() + y * pitch;
        rows_.resize(across, lines.source_row.get(), lines.pitch, channels, out, crop_height * pitch);
        for (int64_t c = 0; c < channels; ++c) clamp_row(out + c * crop_height * pitch, width_, bound_);
      }
    });
    each(height_, row_grain(), [&](Lines& lines, int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y)
        for (int64_t c = 0; c < channels; ++c) {
          // A row ends in the middle of a vector, and the next one is another thread's.
          float *row = lines.line.get(), *out = channel(c) + y * width_;
          const float* in = s_.between.get() + (c * crop_height + down.first[y]) * pitch;
          rows_.blend_floats({in, pitch, 0, down.weight + y, down.stride, down.taps, 1, pitch, row, 0});
          clamp_row(row, width_, bound_);
          std::copy(row, row + width_, out);
        }
    });
  }

  // Lets the runs of a narrow crop be read a whole vector at a time: not beyond the images, but from a copy.
  template <class Pixel>
  void copy_narrow(int64_t crop_height, BlendRows<Pixel>* rows) {
    if (!s_.has_narrow) s_.narrow = Buffer<float>(a_.channels * s_.height * kRowStep);
    s_.has_narrow = true;
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

  void warp() {
    const double last_x = double(width_ - 1), last_y = double(height_ - 1);
    double m[9];
    std::copy(p_.map, p_.map + 9, m);
    float* other = s_.other(a_.channels);
    each(height_, row_grain(), [&](Lines& lines, int64_t begin, int64_t end) {
      if (!lines.warps) {
        lines.weight = Buffer<float>(4 * width_);
        lines.position = Buffer<double>(2 * width_);
        lines.from = Buffer<int32_t>(4 * width_);
        lines.warps = true;
      }
      double *source_x = lines.position.get(), *source_y = source_x + width_;
      const auto weight = a_.nearest ? nullptr : lines.weight.get();
      for (int64_t y = begin; y < end; ++y) {
        source_positions(m, -last_x / 2, double(y) - last_y / 2, width_, last_x / 2, last_y / 2, source_x, source_y);
        if (a_.nearest)
          nearest_pixels(source_x, source_y, width_, last_x, last_y, int32_t(width_), lines.from.get());
        else
          bilinear_pixels(source_x, source_y, width_, last_x, last_y, int32_t(width_), lines.from.get(), weight);
        for (int64_t c = 0; c < a_.channels; ++c) {
          const float fill = a_.fill ? a_.fill[c] : 0.f;
          float* out = other + c * s_.plane + y * width_;
          if (a_.nearest)
            take_nearest(channel(c), lines.from.get(), width_, fill, out);
          else
            take_bilinear(channel(c), lines.from.get(), weight, width_, a_.fill != nullptr, fill, out);
        }
      }
    });
    std::swap(s_.image, s_.spare);
  }

  Sweep next_sweep(int begin, bool contrast, double mean) const {
    int end = begin + contrast;
    while (end < 4 && int(p_.color_op[end]) != kContrast) ++end;
    return {begin, end, float(mean), end < 4, end == 4};
  }

  // Takes the bands of pixels up to `ready`, which is a multiple of kBand or all, through the sweep.
  void sweep_to(Sweep* sweep, int64_t ready) {
    const int64_t first = sweep->done / kBand, bands = (ready - sweep->done + kBand - 1) / kBand;
    if (bands <= 0) return;
    sweep->done = ready;
    each(bands, std::max<int64_t>(1, kRowThreadPixels / 4 / kBand), [&](Lines& lines, int64_t begin, int64_t end) {
      for (int64_t band = first + begin; band < first + end; ++band) sweep_band(*sweep, band, lines);
    });
  }

  void sweep_band(const Sweep& sweep, int64_t band, Lines& lines) {
    const int64_t at = band * kBand, n = std::min(kBand, pixels_ - at);
    const bool ends = sweep.last && !blur_ && !whole_,
               converts = ends && a_.out_type != PixelType::kUint8 && !point_ops_;
    const bool direct = a_.out_type == PixelType::kFloat32;
    ColorRun run{};
    for (int i = sweep.begin; i < sweep.end; ++i)
      if (p_.color_op[i] != 0) run.op[run.ops++] = int(p_.color_op[i]);
    run.brightness = p_.brightness;
    run.contrast = p_.contrast;
    run.contrast_add = (1 - p_.contrast) * sweep.mean;
    run.saturation = p_.saturation;
    run.hue = p_.hue;
    run.bound = bound_;
    run.gray = sweep.last && p_.grayscale != 0 && a_.channels == 3;
    run.sum = sweep.sums;
    run.channels = a_.channels == 3 ? 3 : 1;
    run.n = n;
    for (int64_t c = 0; c < a_.channels; c += run.channels) {
      run.stream = direct;
      for (int64_t k = 0; k < run.channels; ++k) {
        run.channel[k] = channel(c + k) + at;
        if (!converts) continue;
        const Target to = target(c + k, at);
        run.out[k] = direct ? static_cast<float*>(a_.out) + to.at : lines.line.get() + k * lines.line_pitch;
        run.factor[k] = to.factor;
        run.add[k] = to.add;
        run.stream &= aligned(run.out[k]);
      }
      if (converts || run.ops > 0 || run.gray || run.sum) {
        const double sum = rows_.color(run);
        if (run.sum) s_.sums[band] = sum;
      }
      for (int64_t k = 0; k < run.channels && ends; ++k) {
        if (converts) {
          if (!direct) store_half(run.out[k], n, target(c + k, at).at);
        } else {
          point_ops(run.channel[k], n);
          store(c + k, at, run.channel[k], n, lines);
        }
      }
    }
  }

  void point_ops(float* values, int64_t n) {
    const float noise = step_noise(bound_);
    if (p_.invert != 0) invert_row(values, n, bound_);
    if (p_.posterize != 0) posterize_row(values, n, posterize_step(p_.posterize, bound_), p_.posterize, noise);
    if (p_.solarize != 0) rows_.solarize(values, n, p_.solarize_threshold * bound_ - noise, bound_);
  }

  // Normalises and stores n pixels of channel c from pixel `at` on.
  void store(int64_t c, int64_t at, const float* values, int64_t n, Lines& lines) {
    const Target to = target(c, at);
    if (a_.out_type == PixelType::kUint8) {
      quantize_row(values, n, 255 / bound_, rounding_, static_cast<uint8_t*>(a_.out) + to.at);
      return;
    }
    for (int64_t done = 0; done < n; done += kBand) {
      const int64_t some = std::min(kBand, n - done);
      const bool direct = a_.out_type == PixelType::kFloat32;
      float* line = direct ? static_cast<float*>(a_.out) + to.at + done : lines.half.get();
      rows_.normalize(values + done, some, to.factor, to.add, direct && aligned(line), line);
      if (!direct) store_half(line, some, to.at + done);
    }
  }

  void store_half(const float* line, int64_t n, int64_t at) {
    uint16_t* out = static_cast<uint16_t*>(a_.out) + at;
    a_.out_type == PixelType::kBFloat16 ? rows_.to_bfloat16(line, n, out) : rows_.to_float16(line, n, out);
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

  // Blurs, kBlurRows rows at a time; then normalises and stores, unless more is to be done on the image as a whole.
  void blur() {
    s_.kernel_x.build(int64_t(p_.blur_radius_x), p_.blur_sigma);
    s_.kernel_y.build(int64_t(p_.blur_radius_y), p_.blur_sigma);
    float* other = whole_ ? s_.other(a_.channels) : nullptr;
    const int64_t groups = (height_ + kBlurRows - 1) / kBlurRows;
    // A gray image's channels are one.
    const int64_t channels = p_.grayscale != 0 && !whole_ ? 1 : a_.channels;
    each(channels * groups, std::max<int64_t>(1, row_grain() / kBlurRows),
         [&](Lines& lines, int64_t begin, int64_t end) {
           for (int64_t i = begin; i < end; ++i) blur_rows(i / groups, i % groups * kBlurRows, channels, other, lines);
         });
    if (whole_) std::swap(s_.image, s_.spare);
  }

  // The rows from y on of channel c, which is the first of all that are equal to it.
  void blur_rows(int64_t c, int64_t y, int64_t channels, float* other, Lines& lines) {
    const int64_t reach_x = s_.kernel_x.reach, reach_y = s_.kernel_y.reach;
    const int64_t some = std::min<int64_t>(kBlurRows, height_ - y), count = 2 * reach_y + some;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t at = y + j - reach_y;
      const int64_t row = at < 0 ? -at : at >= height_ ? 2 * (height_ - 1) - at : at;
      lines.blur_rows[j] = channel(c) + row * width_;
    }
    float *middle[kBlurRows], *padded = lines.padded.get() + row_steps(reach_x);
    for (int64_t o = 0; o < kBlurRows; ++o) middle[o] = padded + o * lines.padded_pitch;
    rows_.blur_y(lines.blur_rows.get(), count, s_.kernel_y.weight, width_, middle);
    for (int64_t o = 0; o < some; ++o) rows_.reflect(middle[o], width_, reach_x);
    // Blur and normalisation are one step, unless something comes between them.
    const bool equal = channels < a_.channels;
    const bool apart = a_.out_type == PixelType::kUint8 || point_ops_ || whole_ || equal;
    const bool direct = a_.out_type == PixelType::kFloat32 && !apart;
    const Target to = target(c, y * width_);
    float* line = lines.line.get();
    if (direct) line = static_cast<float*>(a_.out) + to.at;
    if (other) line = other + c * s_.plane + y * width_;
    rows_.blur_x({padded - reach_x, lines.padded_pitch, some, s_.kernel_x.weight, 2 * reach_x + 1, width_,
                  apart ? 1 : to.factor, apart ? 0 : to.add, direct && aligned(line) && width_ % kRowStep == 0, line,
                  width_});
    if (direct || other) return;
    if (!apart) return store_half(line, some * width_, to.at);
    point_ops(line, some * width_);
    for (int64_t k = c; k < (equal ? a_.channels : c + 1); ++k) store(k, y * width_, line, some * width_, lines);
  }

  // What needs the image as a whole, channel by channel.
  void finish() {
    float* other = p_.sharpen != 0 ? s_.other(a_.channels) : nullptr;
    each(a_.channels, 1, [&](Lines& lines, int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        float* plane = channel(c);
        if (other && height_ > 2 && width_ > 2) {
          plane = other + c * s_.plane;
          std::copy(channel(c), channel(c) + width_, plane);
          for (int64_t y = 1; y + 1 < height_; ++y) {
            const float* row = channel(c) + y * width_;
            sharpen_row(row - width_, row, row + width_, width_, p_.sharpness, bound_, bound_ == 255,
                        plane + y * width_);
          }
          std::copy(channel(c) + pixels_ - width_, channel(c) + pixels_, plane + pixels_ - width_);
        }
        point_ops(plane, pixels_);
        if (p_.autocontrast != 0) stretch_plane(plane, pixels_, bound_);
        if (p_.equalize != 0)
          equalize_plane(plane, pixels_, bound_ == 255 ? 1 : 255.999f, bound_ == 255 ? rounding_ : 0, bound_ / 255);
        store(c, 0, plane, pixels_, lines);
      }
    });
  }

  void erase() {
    const int64_t top = int64_t(p_.erase_top), left = int64_t(p_.erase_left), width = int64_t(p_.erase_width);
    if (stream_) rows_.stream_end();
    for (int64_t c = 0; c < a_.channels; ++c)
      for (int64_t y = top; y < top + int64_t(p_.erase_height); ++y)
        for (int64_t x = left; x < left + width; ++x) {
          const int64_t pixel = y * width_ + x;
          float value = p_.erase_seed > 0 ? erase_noise(uint32_t(p_.erase_seed), pixel, c) : a_.erase[c];
          const int64_t at = target(c, pixel).at;
          if (a_.out_type == PixelType::kFloat32) {
            static_cast<float*>(a_.out)[at] = value;
          } else if (a_.out_type == PixelType::kUint8) {
            // A value given is cut off, as where torch turns it into a byte; noise is rounded.
            value = p_.erase_seed > 0 ? std::nearbyint(value) : value;
            static_cast<uint8_t*>(a_.out)[at] = uint8_t(clamp(value, 255.f));
          } else {
            store_half(&value, 1, at);
          }
        }
  }

  const AugmentApply& a_;
  const AugmentRows& rows_;
  const AugmentParams& p_;
  const int64_t number_;
  Planes& s_;
  Lines* const lines_;
  const int64_t height_, width_, pixels_;
  const bool stream_;  // whether float32 output goes past the caches
  const bool blur_, whole_, point_ops_;
  float bound_;     // the largest value: 255 or 1, as the images'
  float rounding_;  // what a byte is more than the floor of
};

// An output that no cache holds need not push the images out of it.
bool streams(const AugmentApply& a) {
  return a.n * a.channels * a.out_height * a.out_width * int64_t(sizeof(float)) >= kStreamBytes;
}

// Scratch for views of several sizes, those of one size sharing it.
template <class Scratch>
class PerSize {
 public:
  Scratch& of(const AugmentApply& a) {
    for (Entry& entry : entries_)
      if (entry.height == a.out_height && entry.width == a.out_width) return entry.scratch;
    entries_.push_back({a.out_height, a.out_width, Scratch(a)});
    return entries_.back().scratch;
  }

 private:
  struct Entry {
    int64_t height, width;
    Scratch scratch;
  };
  std::vector<Entry> entries_;
};

// A view made channel by channel, to where its channels come last; `shared_out`: by all threads.
template <class T>
void join_view(const AugmentApply& view, const float* planes, char* out, bool shared_out) {
  const int64_t pixels = view.out_height * view.out_width;
  const auto join = [&](int64_t begin, int64_t end) {
    join_channels(reinterpret_cast<const T*>(planes) + begin, pixels, view.channels, end - begin,
                  reinterpret_cast<T*>(out) + begin * view.channels);
  };
  shared_out ? parallel_for(pixels, kRowThreadPixels, join) : join(0, pixels);
}

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

void augment_apply(const AugmentApply* views, int64_t count) {
  if (count == 0) return;
  const AugmentRows& rows = augment_rows();
  const auto make = [&](const AugmentApply& view, int64_t i, Planes* planes, Lines* lines) {
    if (!view.offsets && !view.out_channels_last) return View(view, rows, i, streams(view), planes, lines).run();
    AugmentApply one = image_alone(view, i);
    const int64_t values = view.channels * view.out_height * view.out_width, bytes = pixel_bytes(view.out_type);
    char* const out = static_cast<char*>(view.out) + i * values * bytes;
    one.out = out;
    if (!view.out_channels_last) return View(one, rows, 0, streams(view), planes, lines).run();
    // Every stage works channel by channel: the finished view is still in the cache when its channels are joined.
    float* const finished = planes->finished(values);
    one.out = finished;
    View(one, rows, 0, false, planes, lines).run();
    (bytes == 1 ? join_view<uint8_t> : bytes == 2 ? join_view<uint16_t> : join_view<float>)(one, finished, out, !lines);
  };
  const int64_t n = views[0].n, threads = thread_count();
  int64_t largest = 0;
  for (int64_t v = 0; v < count; ++v) largest = std::max(largest, views[v].out_height * views[v].out_width);
  if (n < threads && largest >= kRowThreadPixels) {
    PerSize<Planes> planes;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t v = 0; v < count; ++v) make(views[v], i, &planes.of(views[v]), nullptr);
    return;
  }
  // Images differ in work: a thread that is done takes the next one.
  std::atomic<int64_t> next{0};
  parallel_for(std::min(n, threads), 1, [&](int64_t, int64_t) {
    PerSize<Planes> planes;
    PerSize<Lines> lines;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;)
      for (int64_t v = 0; v < count; ++v) make(views[v], i, &planes.of(views[v]), &lines.of(views[v]));
    rows.stream_end();
  });
}

}  // namespace fastcl
