// RoI pooling: hard RoIs, hard features, somebody else's argmax.
#include "fastrcnn_engine/roi_pool.h"

#include <initializer_list>

#include "fastrcnn_engine/error.h"
#include "fastrcnn_engine/semantics/half.h"
#include "fastrcnn_engine/semantics/roi_bins.h"
#include "kernel_tests.h"

namespace {

// Halves, reversed, outside on every side, wider than the map, not finite; the corners below are in
// cells. Then `others`. The last rows have batch indices that do not exist, or are fractions.
std::vector<float> hard_rois(int64_t images, int64_t h, int64_t w, float scale, int64_t others,
                             Random& random) {
  const float far_x = static_cast<float>(w), far_y = static_cast<float>(h);
  const std::vector<std::array<float, 4>> corners = {
      {0, 0, far_x - 1, far_y - 1}, {0.5f, 1.5f, 2.5f, 3.5f},       {-0.5f, -1.5f, 4.5f, 4.5f},
      {2, 3, 2, 3},                 {5, 6, 1, 2},                   {-9, -9, -3, -3},
      {far_x, 0, far_x + 5, 4},     {0, far_y, 4, far_y + 5},       {-9, -9, far_x + 9, far_y + 9},
      {0, 0, 56, 5},                {kNan, 0, 3, 3},                {0, 0, kNan, kNan},
      {-kInf, -kInf, kInf, kInf},   {kInf, 0, 3, 3},                {-3e38f, -3e38f, 3e38f, 3e38f},
      {0, 0, 2e9f, 2e9f},           {-1.9e9f, 0, 1.9e9f, far_y},    {1e-40f, 0, 1, 1},
      {0, 0, 42, 2}};  // by 40 bins: the first 13 have two columns of cells, others three
  std::vector<float> rois;
  const auto add = [&](float image, const std::array<float, 4>& box) {
    rois.push_back(image);
    for (const float corner : box) rois.push_back(corner / scale);
  };
  for (const auto& box : corners)
    add(static_cast<float>(random.integer(0, images - 1)), box);
  for (int64_t i = 0; i < others; ++i)
    add(static_cast<float>(random.integer(0, images - 1)),
        {random.quarters(-2, w), random.quarters(-2, h), random.quarters(-2, w),
         random.quarters(-2, h)});
  const float last = static_cast<float>(images - 1);
  for (const float image : {-1.0f, last + 1, 1e20f, -1e20f, kNan, kInf, -kInf, last + 0.7f, -0.5f})
    add(image, corners[0]);
  return rois;
}

struct PoolShape {
  int64_t images, channels, h, w, bins_h, bins_w;
  float scale;
};
constexpr PoolShape kPoolShapes[] = {
    // More columns of bins than lanes, cells beyond 2047, bins that begin beyond 255.
    {1, 5, 4, 600, 2, 40, 1.0f},
    {2, 3, 9, 60, 7, 7, 1.0f / 16}, {3, 5, 6, 5, 2, 3, 1.0f}, {1, 1, 1, 1, 1, 1, 0.5f},
    {2, 36, 4, 4, 3, 3, 0.0625f},   {1, 2, 0, 4, 2, 2, 1.0f}, {1, 9, 5, 7, 3, 11, 0.25f},
    {1, 8, 28, 29, 2, 2, 0.5f},  // 64 bytes of a cell are more than a kernel has without asking
};

// Numbers of a RoI that 16 bits do not count. So many that a few RoIs have to do.
constexpr PoolShape kManyNumbers = {1, 300, 4, 5, 15, 15, 1.0f};
constexpr int64_t kFewRois = 2;

// Shared memory for just 16 bytes of every cell, a counter and, for each of 8 warps, 4 RoIs with 4 bytes of
// every row and column of bins.
int small_bytes(const PoolShape& shape) {
  return static_cast<int>(16 * shape.h * shape.w + 16 + 8 * 4 * 4 * (shape.bins_h + shape.bins_w));
}

// And for each of 8 warps a RoI's part of 16 bytes of planes, with argmax.
template <typename T>
int small_bytes_by_planes(const PoolShape& shape) {
  const int64_t bins = shape.bins_h * shape.bins_w, cells = 16 / sizeof(T) * 2 * bins;
  return small_bytes(shape) + static_cast<int>(8 * (16 * bins + (cells + 15) / 16 * 16));
}

// The device as it is; those with as little shared memory; one with none. Each in another schedule.
template <typename Check>
void on_every_device(std::initializer_list<int> little, const Check& check) {
  const auto on_device = [&](int bytes) {
    with_shared_bytes(bytes, [&] {
      in_next_schedule([&](const std::string& where) {
        check(" (" + std::to_string(bytes) + " bytes)" + where);
      });
    });
  };
  on_device(emulation::shared_limit);
  for (const int bytes : little) on_device(bytes);
  on_device(0);
}

template <typename T>
T number(float value) {
  if constexpr (sizeof(T) == 2)
    return semantics::narrow<T>(value);
  else
    return static_cast<T>(value);
}

// The calls on vectors; the views of one are those of the other.
template <typename T, typename Index>
struct Pool {
  PoolShape shape;
  Layout layout;
  std::vector<T> features;
  std::vector<float> rois;
  bool with_argmax = true;
  // Elements before the map and the results, which then begin where no vector may.
  int64_t map_lead = 0, output_lead = 0, argmax_lead = 0;
  std::vector<T> output;
  std::vector<Index> argmax;

  int64_t count() const { return static_cast<int64_t>(rois.size()) / 5; }

  RoiPoolForward<T, Index> call() {
    const auto& [n, c, h, w, ph, pw, scale] = shape;
    const int64_t size = count() * c * ph * pw;
    output.assign(output_lead + size, number<T>(77));
    argmax.assign(argmax_lead + size, 77);
    return {{features.data() + map_lead, n, c, h, w, layout},
            rows_of(std::as_const(rois), 5),
            scale,
            {output.data() + output_lead, count(), c, ph, pw, layout},
            {with_argmax ? argmax.data() + argmax_lead : nullptr, count(), c, ph, pw, layout}};
  }
};

// What the CPU computes where it would reject a row: its output is 0 and its argmax -1.
template <typename T, typename Index>
void pool_on_cpu(Pool<T, Index>& pool) {
  Pool<T, Index> valid = pool;
  valid.rois.clear();
  std::vector<int64_t> rows;
  for (int64_t r = 0; r < pool.count(); ++r) {
    const float* roi = pool.rois.data() + 5 * r;
    if (semantics::roi_image(roi[0], pool.shape.images) < 0) continue;
    rows.push_back(r);
    valid.rois.insert(valid.rois.end(), roi, roi + 5);
  }
  cpu::roi_pool_forward(valid.call());
  pool.call();
  std::fill(pool.output.begin() + pool.output_lead, pool.output.end(), T{});
  if (pool.with_argmax)
    std::fill(pool.argmax.begin() + pool.argmax_lead, pool.argmax.end(), static_cast<Index>(-1));
  const int64_t size = pool.shape.channels * pool.shape.bins_h * pool.shape.bins_w;
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto copy = [&](const auto& from, auto& to, int64_t lead) {
      std::copy_n(from.begin() + lead + i * size, size, to.begin() + lead + rows[i] * size);
    };
    copy(valid.output, pool.output, pool.output_lead);
    if (pool.with_argmax) copy(valid.argmax, pool.argmax, pool.argmax_lead);
  }
}

// Which numbers are in a map that a machine's own maximum takes for something else: NaN and -0.
enum class Unordered { many, none, one_nan, one_minus_nan, one_minus_zero };
constexpr std::pair<bool, Unordered> kForwardCases[] = {
    // with argmax?
    {true, Unordered::many},     {false, Unordered::many},          {false, Unordered::none},
    {false, Unordered::one_nan}, {false, Unordered::one_minus_nan}, {false, Unordered::one_minus_zero},
    {true, Unordered::none},     {true, Unordered::one_nan},        {true, Unordered::one_minus_zero}};

template <typename T, typename Index>
Pool<T, Index> make_pool(const PoolShape& shape, Layout layout, int64_t others, Random& random,
                         Unordered unordered = Unordered::many) {
  Pool<T, Index> pool;
  pool.shape = shape;
  pool.layout = layout;
  pool.rois = hard_rois(shape.images, shape.h, shape.w, shape.scale, others, random);
  const auto features =
      random.many<float>(shape.images * shape.channels * shape.h * shape.w, -2, 2);
  const float most = std::min<double>(std::numeric_limits<semantics::Wide<T>>::max(), 3e38);
  for (float value : features) {
    const int64_t kind = random.integer(0, 19);
    if (kind == 0) value = unordered == Unordered::many ? kNan : 3e-40f;  // of 16 bits: 0
    if (kind == 1) value = -kInf;
    if (kind == 2) value = kInf;
    if (kind == 3) value = -most;
    if (kind == 4) value = unordered == Unordered::many ? -0.0f : 1e-6f;  // denormal as float16
    pool.features.push_back(number<T>(value));
    if constexpr (sizeof(T) == 2)
      if (unordered != Unordered::many && random.integer(0, 1) == 0) {
        const T any{static_cast<uint16_t>(random.integer(0, 0xffff))};
        const float wide = semantics::widen(any);
        if (wide < 0 || wide > 0 || any.bits == 0) pool.features.back() = any;
      }
  }
  if (unordered != Unordered::many) {
    // In one plane nothing is greater than 0, and -0 comes before or after it.
    const int64_t plane = std::min<int64_t>(shape.h * shape.w, pool.features.size());
    for (int64_t i = 0; i < plane; ++i) pool.features[i] = number<T>(i % 2 == 0 ? 0.0f : -kInf);
    const float odd = unordered == Unordered::one_nan         ? kNan
                      : unordered == Unordered::one_minus_nan ? -kNan
                                                              : -0.0f;
    if (unordered != Unordered::none && plane > 0)
      pool.features[random.integer(0, plane - 1)] = number<T>(odd);
    return pool;
  }
  // The first plane of an image: NaN and -inf only.
  for (int64_t i = 0; i < std::min<int64_t>(shape.h * shape.w, pool.features.size()); ++i)
    pool.features[i] = number<T>(i % 3 == 0 ? -kInf : kNan);
  return pool;
}

template <typename T, typename Index>
void expect_pooled(Pool<T, Index>& pool, const Pool<T, Index>& expected, const std::string& where) {
  cuda::roi_pool_forward(pool.call(), stream());
  emulation::finish();
  expect(same(pool.output, expected.output), "roi_pool output" + where);
  expect(same(pool.argmax, expected.argmax), "roi_pool argmax" + where);
}

template <typename T, typename Index>
void roi_pool_forward_of() {
  Random random;
  for (const PoolShape& shape : kPoolShapes)
    for (const Layout layout : {Layout::nchw, Layout::nhwc})
      for (const auto& [with_argmax, unordered] : kForwardCases) {
        if (kWatchesRaces && unordered > Unordered::none) continue;
        // float64 is compared one by one in any case.
        if (unordered != Unordered::many && sizeof(T) > 4) continue;
        // Enough of them for slabs.
        auto pool = make_pool<T, Index>(shape, layout, 32 * shape.images, random, unordered);
        pool.with_argmax = with_argmax;
        // As they are; then with the map (1), the output (2) and argmax (4) where no vector may begin.
        const std::vector<T> features = pool.features;
        for (const int moved : {0, 1, 2, 4, 7}) {
          const bool is_asked = sizeof(T) == 4 ? moved != 7 : moved == 7;
          if (moved != 0 && (unordered != Unordered::many || !is_asked || kWatchesRaces)) continue;
          pool.map_lead = moved & 1, pool.output_lead = moved >> 1 & 1, pool.argmax_lead = moved >> 2;
          pool.features.assign(pool.map_lead, T{});
          pool.features.insert(pool.features.end(), features.begin(), features.end());
          auto expected = pool;
          pool_on_cpu(expected);
          const auto little = {small_bytes_by_planes<T>(shape), small_bytes(shape)};
          on_every_device(
              little, [&](const std::string& where) { expect_pooled(pool, expected, where); });
        }
      }
  if (sizeof(T) == 4 && !kWatchesRaces)
    for (const int64_t count : {kFewRois, int64_t{32}}) {  // directly; from slabs
      auto pool = make_pool<T, Index>(kManyNumbers, Layout::nhwc, 4, random);
      pool.rois.resize(5 * count);
      auto expected = pool;
      pool_on_cpu(expected);
      expect_pooled(pool, expected, ", many numbers");
    }
  auto empty = make_pool<T, Index>(kPoolShapes[0], Layout::nchw, 0, random);
  empty.rois.clear();
  cuda::roi_pool_forward(empty.call(), stream());
  emulation::finish();
  auto no_images = make_pool<T, Index>(kPoolShapes[1], Layout::nchw, 0, random);
  no_images.shape.images = 0;
  cuda::roi_pool_forward(no_images.call(), stream());
  emulation::finish();
  expect(same(no_images.output, std::vector<T>(no_images.output.size())), "no images");
}

template <typename T, typename Index>
void roi_pool_backward_of() {
  Random random;
  std::vector<PoolShape> shapes(std::begin(kPoolShapes), std::end(kPoolShapes));
  if (sizeof(T) == 4) {
    shapes.push_back({1, 5, 3, 3, 17, 17, 0.5f});  // more bins than a warp takes together
    if (!kWatchesRaces) shapes.push_back(kManyNumbers);
    // Room for the sums of four planes, and of one, but not for the words of their cells.
    shapes.push_back({1, 5, 95, 95, 3, 3, 1.0f});
    shapes.push_back({1, 1, 170, 170, 2, 2, 1.0f});
  }
  if (sizeof(Index) == 2) shapes.push_back({1, 1, 255, 257, 2, 2, 1.0f});  // as many cells as uint16 numbers
  for (const PoolShape& shape : shapes)
    for (const Layout layout : {Layout::nchw, Layout::nhwc})
      for (const bool no_rois : {false, true}) {
        // Once more of them than are listed at once, and a list without any for the other images.
        const bool many = shape.images == 3 && layout == Layout::nhwc && sizeof(T) == 4;
        auto pool = make_pool<T, Index>(shape, layout, many ? 520 : 6, random);
        for (int64_t r = 0; many && r < 512; ++r) pool.rois[5 * r] = 0;
        if (shape.channels == kManyNumbers.channels) pool.rois.resize(kFewRois * 5);
        if (no_rois) pool.rois.clear();
        pool_on_cpu(pool);
        for (Index& cell : pool.argmax) {  // somebody else's argmax: anything may stand there
          const int64_t kind = random.integer(0, 19);
          if (kind == 0) cell = std::numeric_limits<Index>::max();
          if (kind == 1) cell = std::numeric_limits<Index>::min();
          if (kind == 2) cell = static_cast<Index>(shape.h * shape.w);
          if (kind == 3) cell = static_cast<Index>(random.integer(-1, shape.h * shape.w - 1));
        }
        // Thirds: their sums depend on the order of the additions.
        std::vector<T> grad_output;
        for (const float value : random.many<float>(pool.output.size(), -9, 9)) {
          const int64_t kind = random.integer(0, 499);
          const float odd = kind == 0 ? kNan : kind == 1 ? kInf : kind == 2 ? -kInf : -0.0f;
          grad_output.push_back(number<T>(kind > 9 ? value / 3 : odd));
        }
        std::vector<T> grad_input(pool.features.size(), number<T>(77));
        const auto& [n, c, h, w, ph, pw, scale] = shape;
        RoiPoolBackward<T, Index> call{{grad_output.data(), pool.count(), c, ph, pw, layout},
                                {pool.argmax.data(), pool.count(), c, ph, pw, layout},
                                rows_of(std::as_const(pool.rois), 5),
                                {grad_input.data(), n, c, h, w, layout}};
        // The CPU rejects rows without an image; to it they are rows that name no cell.
        std::vector<float> valid_rois = pool.rois;
        std::vector<Index> valid_argmax = pool.argmax;
        const int64_t size = c * ph * pw;
        for (int64_t r = 0; r < pool.count(); ++r)
          if (semantics::roi_image(valid_rois[5 * r], n) < 0) {
            valid_rois[5 * r] = 0;
            std::fill_n(valid_argmax.begin() + r * size, size, static_cast<Index>(-1));
          }
        RoiPoolBackward<T, Index> on_cpu = call;
        on_cpu.rois.data = valid_rois.data();
        on_cpu.argmax.data = valid_argmax.data();
        cpu::roi_pool_backward(on_cpu);
        const std::vector<T> expected = grad_input;
        const auto check = [&](const std::string& where) {
          grad_input.assign(grad_input.size(), number<T>(77));
          cuda::roi_pool_backward(call, stream());
          emulation::finish();
          expect(same(grad_input, expected), "roi_pool grad_input" + where);
        };
        in_every_schedule(check);
        on_every_device({std::min(small_bytes(shape), emulation::shared_limit)}, check);
      }
  auto pool = make_pool<T, Index>(kPoolShapes[0], Layout::nchw, 6, random);
  std::vector<T> grad_input(pool.features.size(), number<T>(77));
  const auto& [n, c, h, w, ph, pw, scale] = pool.shape;
  RoiPoolBackward<T, Index> no_bins{{nullptr, pool.count(), c, 0, pw},
                                    {nullptr, pool.count(), c, 0, pw},
                                    rows_of(std::as_const(pool.rois), 5),
                                    {grad_input.data(), n, c, h, w}};
  cuda::roi_pool_backward(no_bins, stream());
  emulation::finish();
  expect(same(grad_input, std::vector<T>(grad_input.size())), "no bins");
  RoiPoolBackward<T, Index> many_bins = no_bins;
  many_bins.rois.shape[0] = many_bins.grad_output.n = many_bins.argmax.n = 0;
  many_bins.grad_output.h = many_bins.argmax.h = 1 << 30;
  try {
    cuda::roi_pool_backward(many_bins, stream());
    expect(false, "many bins");
  } catch (const InvalidArgument& error) {
    expect(std::string(error.what()).find("2^31") != std::string::npos, error.what());
  }
}

}  // namespace

void roi_pool_forward() {
  roi_pool_forward_of<float, int32_t>();
  if (!kWatchesRaces) roi_pool_forward_of<double, uint16_t>();  // which does the same at the same places
}

void roi_pool_forward_of_16_bits() {
  roi_pool_forward_of<float16, int32_t>();
  roi_pool_forward_of<bfloat16, uint16_t>();
}

void roi_pool_backward() {
  roi_pool_backward_of<float, int32_t>();
  roi_pool_backward_of<double, uint16_t>();
  roi_pool_backward_of<float16, uint16_t>();
  roi_pool_backward_of<bfloat16, int32_t>();
}
