// RoI pooling: hard RoIs, hard features, somebody else's argmax.
#include "fastrcnn_engine/roi_pool.h"
#include "fastrcnn_engine/semantics/roi_bins.h"
#include "kernel_tests.h"

namespace {

// Halves, reversed, outside on every side, wider than the map, not finite. The corners below are in
// cells. The last rows have batch indices that do not exist, or are fractions.
std::vector<float> hard_rois(int64_t images, int64_t h, int64_t w, float scale, Random& random) {
  const float far_x = static_cast<float>(w), far_y = static_cast<float>(h);
  const std::vector<std::array<float, 4>> corners = {
      {0, 0, far_x - 1, far_y - 1}, {0.5f, 1.5f, 2.5f, 3.5f},       {-0.5f, -1.5f, 4.5f, 4.5f},
      {2, 3, 2, 3},                 {5, 6, 1, 2},                   {-9, -9, -3, -3},
      {far_x, 0, far_x + 5, 4},     {0, far_y, 4, far_y + 5},       {-9, -9, far_x + 9, far_y + 9},
      {0, 0, 56, 5},                {kNan, 0, 3, 3},                {0, 0, kNan, kNan},
      {-kInf, -kInf, kInf, kInf},   {kInf, 0, 3, 3},                {-3e38f, -3e38f, 3e38f, 3e38f},
      {0, 0, 2e9f, 2e9f},           {-1.9e9f, 0, 1.9e9f, far_y},    {1e-40f, 0, 1, 1}};
  std::vector<float> rois;
  const auto add = [&](float image, const std::array<float, 4>& box) {
    rois.push_back(image);
    for (const float corner : box) rois.push_back(corner / scale);
  };
  for (const auto& box : corners)
    add(static_cast<float>(random.integer(0, images - 1)), box);
  for (int i = 0; i < 8; ++i)
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
    {2, 3, 9, 60, 7, 7, 1.0f / 16}, {3, 5, 6, 5, 2, 3, 1.0f}, {1, 1, 1, 1, 1, 1, 0.5f},
    {2, 33, 4, 4, 3, 3, 0.0625f},   {1, 2, 0, 4, 2, 2, 1.0f},
};

// The calls on vectors; the views of one are those of the other.
template <typename T>
struct Pool {
  PoolShape shape;
  Layout layout;
  std::vector<T> features;
  std::vector<float> rois;
  bool with_argmax = true;
  std::vector<T> output;
  std::vector<int32_t> argmax;

  int64_t count() const { return static_cast<int64_t>(rois.size()) / 5; }

  RoiPoolForward<T> call() {
    const auto& [n, c, h, w, ph, pw, scale] = shape;
    output.assign(count() * c * ph * pw, T(77));
    argmax.assign(output.size(), 77);
    return {{features.data(), n, c, h, w, layout},
            rows_of(std::as_const(rois), 5),
            scale,
            {output.data(), count(), c, ph, pw, layout},
            {with_argmax ? argmax.data() : nullptr, count(), c, ph, pw, layout}};
  }
};

// What the CPU computes where it would reject a row: its output is 0 and its argmax -1.
template <typename T>
void pool_on_cpu(Pool<T>& pool) {
  Pool<T> valid = pool;
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
  pool.output.assign(pool.output.size(), T(0));
  pool.argmax.assign(pool.argmax.size(), pool.with_argmax ? -1 : 77);
  const int64_t size = pool.shape.channels * pool.shape.bins_h * pool.shape.bins_w;
  for (size_t i = 0; i < rows.size(); ++i) {
    std::copy_n(valid.output.begin() + i * size, size, pool.output.begin() + rows[i] * size);
    std::copy_n(valid.argmax.begin() + i * size, size, pool.argmax.begin() + rows[i] * size);
  }
}

template <typename T>
Pool<T> make_pool(const PoolShape& shape, Layout layout, Random& random) {
  Pool<T> pool;
  pool.shape = shape;
  pool.layout = layout;
  pool.rois = hard_rois(shape.images, shape.h, shape.w, shape.scale, random);
  pool.features =
      random.many<T>(shape.images * shape.channels * shape.h * shape.w, -2, 2);
  for (T& value : pool.features) {
    const int64_t kind = random.integer(0, 19);
    if (kind == 0) value = kNan;
    if (kind == 1) value = -kInf;
    if (kind == 2) value = kInf;
    if (kind == 3) value = -std::numeric_limits<T>::max();
    if (kind == 4) value = T(-0.0);
  }
  // The first plane of an image: NaN and -inf only.
  for (int64_t i = 0; i < std::min<int64_t>(shape.h * shape.w, pool.features.size()); ++i)
    pool.features[i] = i % 3 == 0 ? -kInf : kNan;
  return pool;
}

template <typename T>
void roi_pool_forward_of() {
  Random random;
  for (const PoolShape& shape : kPoolShapes)
    for (const Layout layout : {Layout::nchw, Layout::nhwc})
      for (const bool with_argmax : {true, false}) {
        Pool<T> pool = make_pool<T>(shape, layout, random);
        pool.with_argmax = with_argmax;
        Pool<T> expected = pool;
        pool_on_cpu(expected);
        in_every_schedule([&](const std::string& where) {
          cuda::roi_pool_forward(pool.call(), stream());
          emulation::finish();
          expect(same(pool.output, expected.output), "roi_pool output" + where);
          expect(same(pool.argmax, expected.argmax), "roi_pool argmax" + where);
        });
      }
  Pool<T> empty = make_pool<T>(kPoolShapes[0], Layout::nchw, random);
  empty.rois.clear();
  cuda::roi_pool_forward(empty.call(), stream());
  emulation::finish();
}

template <typename T>
void roi_pool_backward_of() {
  Random random;
  for (const PoolShape& shape : kPoolShapes)
    for (const Layout layout : {Layout::nchw, Layout::nhwc})
      for (const bool no_rois : {false, true}) {
        Pool<T> pool = make_pool<T>(shape, layout, random);
        if (no_rois) pool.rois.clear();
        pool_on_cpu(pool);
        for (int32_t& cell : pool.argmax) {  // somebody else's argmax: anything may stand there
          const int64_t kind = random.integer(0, 19);
          if (kind == 0) cell = std::numeric_limits<int32_t>::max();
          if (kind == 1) cell = std::numeric_limits<int32_t>::min();
          if (kind == 2) cell = static_cast<int32_t>(shape.h * shape.w);
          if (kind == 3) cell = static_cast<int32_t>(random.integer(-1, shape.h * shape.w - 1));
        }
        // Thirds: their sums depend on the order of the additions.
        std::vector<T> grad_output = random.many<T>(pool.output.size(), -9, 9);
        for (T& value : grad_output) value /= T(3);
        std::vector<T> grad_input(pool.features.size(), T(77));
        const auto& [n, c, h, w, ph, pw, scale] = shape;
        RoiPoolBackward<T> call{{grad_output.data(), pool.count(), c, ph, pw, layout},
                                {pool.argmax.data(), pool.count(), c, ph, pw, layout},
                                rows_of(std::as_const(pool.rois), 5),
                                {grad_input.data(), n, c, h, w, layout}};
        // The CPU rejects rows without an image; to it they are rows that name no cell.
        std::vector<float> valid_rois = pool.rois;
        std::vector<int32_t> valid_argmax = pool.argmax;
        const int64_t size = c * ph * pw;
        for (int64_t r = 0; r < pool.count(); ++r)
          if (semantics::roi_image(valid_rois[5 * r], n) < 0) {
            valid_rois[5 * r] = 0;
            std::fill_n(valid_argmax.begin() + r * size, size, -1);
          }
        RoiPoolBackward<T> on_cpu = call;
        on_cpu.rois.data = valid_rois.data();
        on_cpu.argmax.data = valid_argmax.data();
        cpu::roi_pool_backward(on_cpu);
        const std::vector<T> expected = grad_input;
        in_every_schedule([&](const std::string& where) {
          grad_input.assign(grad_input.size(), T(77));
          cuda::roi_pool_backward(call, stream());
          emulation::finish();
          expect(same(grad_input, expected), "roi_pool grad_input" + where);
        });
      }
}

}  // namespace

void roi_pool_forward() {
  roi_pool_forward_of<float>();
  roi_pool_forward_of<double>();
}

void roi_pool_backward() {
  roi_pool_backward_of<float>();
  roi_pool_backward_of<double>();
}
