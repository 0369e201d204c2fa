// The box loss and its gradient: the checks of both backends, and the CPU's loops, which sum in the order of
// the contract. The formulas are in semantics/, none is here.
#include "fastrcnn_engine/smooth_l1.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "checks.h"
#include "fastrcnn_engine/error.h"
#include "fastrcnn_engine/semantics/smooth_l1.h"

namespace fastrcnn_engine {

namespace {

template <typename T>
void check_operands(const SmoothL1<T>& call) {
  const int64_t rows = call.targets.shape[0], width = call.targets.shape[1];
  require(width > 0, "targets must be (R, D) with D > 0, got (", rows, ", ", width, ")");
  require_memory(call.targets, "targets");
  require_rows(call.deltas, "deltas", rows, "targets");
  if (call.labels == nullptr && rows > 0)  // no rows, no memory: labels may then be null too
    require(call.deltas.shape[1] == width, "without labels deltas must be (R, ", width, "), got (",
            call.deltas.shape[0], ", ", call.deltas.shape[1], ")");
  else
    require(call.deltas.shape[1] > 0 && call.deltas.shape[1] % width == 0,
            "deltas must be (R, ", width, " * classes), got (", call.deltas.shape[0], ", ",
            call.deltas.shape[1], ")");
  require(call.beta >= 0 && std::isfinite(call.beta), "beta must be a number >= 0, got ",
          call.beta);
  require(call.normalizer > 0 && std::isfinite(call.normalizer),
          "normalizer must be a positive number, got ", call.normalizer);
  // grad_loss is divided by it: an infinite quotient would make NaN of 0.
  require(std::isfinite(1 / static_cast<T>(call.normalizer)),
          "normalizer must have a finite inverse in the type of deltas, got ", call.normalizer);
}

}  // namespace

template <typename T>
void check(const SmoothL1<T>& call, const T* loss) {
  check_operands(call);
  require_number(loss, "loss");
}

template <typename T>
void check(const SmoothL1<T>& call, const T* grad_loss, const View<T, 2>& grad_deltas) {
  check_operands(call);
  require_number(grad_loss, "grad_loss");
  require_shape(grad_deltas, "grad_deltas", call.deltas.shape[0], call.deltas.shape[1]);
}

template void check(const SmoothL1<float>&, const float*);
template void check(const SmoothL1<double>&, const double*);
template void check(const SmoothL1<float>&, const float*, const View<float, 2>&);
template void check(const SmoothL1<double>&, const double*, const View<double, 2>&);

namespace cpu {
namespace {

// A row that counts: D numbers at each pointer, of deltas those of the row's class.
template <typename T>
struct Row {
  int64_t number, width;
  const T *delta, *target, *weight;  // weight may be null
};

// Calls visit(Row<T>) for the rows that count, in order.
template <typename T, typename Visit>
void for_each_row(const SmoothL1<T>& call, Visit visit) {
  const int64_t rows = call.targets.shape[0], width = call.targets.shape[1];
  const int64_t classes = call.deltas.shape[1] / width;
  const auto visit_row = [&](int64_t r, int64_t label) {
    visit(Row<T>{r, width, call.deltas.data + r * call.deltas.shape[1] + label * width,
                 call.targets.data + r * width,
                 call.weights == nullptr ? nullptr : call.weights + r * width});
  };
  if (call.labels == nullptr) {
    for (int64_t r = 0; r < rows; ++r) visit_row(r, 0);
    return;
  }
  // Foreground is found before it is computed: a branch on every label would often be mispredicted, and wait
  // for what the row before it reads.
  constexpr int64_t chunk = 256;
  int64_t foreground[chunk];
  for (int64_t first = 0; first < rows; first += chunk) {
    const int64_t last = std::min(first + chunk, rows);
    int64_t found = 0;
    for (int64_t r = first; r < last; ++r) {
      const int64_t label = call.labels[r];
      if (label < 0 || label >= classes)
        fail("labels[", r, "] must be in [0, ", classes, "), got ", label);
      foreground[found] = r;
      found += label != 0;
    }
    for (int64_t i = 0; i < found; ++i) visit_row(foreground[i], call.labels[foreground[i]]);
  }
}

// The formula for the four components of a box, side by side: a branch on each would often be mispredicted.
// Inlined into a loop of rows, GCC would not make vectors of it.
template <typename T, typename Formula>
[[gnu::noinline]] void four(const T* delta, const T* target, Formula formula, T* __restrict results) {
  for (int d = 0; d < 4; ++d) results[d] = formula(delta[d] - target[d]);
}

// Calls use(d, weight[d] * formula(delta[d] - target[d])) for the numbers of a row, in order.
template <typename T, typename Formula, typename Use>
void for_each_number(const Row<T>& row, Formula formula, Use use) {
  const auto weigh = [&](int64_t d, T result) {
    use(d, row.weight == nullptr ? result : row.weight[d] * result);
  };
  if (row.width == 4) {
    T results[4];
    four(row.delta, row.target, formula, results);
    for (int d = 0; d < 4; ++d) weigh(d, results[d]);
  } else {
    for (int64_t d = 0; d < row.width; ++d) weigh(d, formula(row.delta[d] - row.target[d]));
  }
}

}  // namespace

template <typename T>
void smooth_l1_forward(const SmoothL1<T>& call, T* loss) {
  check(call, loss);
  const auto formula = [beta = static_cast<T>(call.beta)](T d) { return semantics::smooth_l1(d, beta); };
  std::array<double, semantics::kLossLanes> lanes{};
  for_each_row(call, [&](const Row<T>& row) {
    double sum = 0;
    for_each_number(row, formula, [&](int64_t, T number) { sum += static_cast<double>(number); });
    lanes[row.number % lanes.size()] += sum;
  });
  for (size_t half = lanes.size() / 2; half > 0; half /= 2)
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  *loss = static_cast<T>(lanes[0] / call.normalizer);
}

template <typename T>
void smooth_l1_backward(const SmoothL1<T>& call, const T* grad_loss, View<T, 2> grad_deltas) {
  check(call, grad_loss, grad_deltas);
  const auto formula = [beta = static_cast<T>(call.beta)](T d) {
    return semantics::smooth_l1_slope(d, beta);
  };
  const T scale = *grad_loss / static_cast<T>(call.normalizer);
  std::fill_n(grad_deltas.data, grad_deltas.size(), T(0));
  for_each_row(call, [&](const Row<T>& row) {
    T* const gradient = grad_deltas.data + (row.delta - call.deltas.data);
    for_each_number(row, formula, [&](int64_t d, T number) { gradient[d] = number * scale; });
  });
}

template void smooth_l1_forward(const SmoothL1<float>&, float*);
template void smooth_l1_forward(const SmoothL1<double>&, double*);
template void smooth_l1_backward(const SmoothL1<float>&, const float*, View<float, 2>);
template void smooth_l1_backward(const SmoothL1<double>&, const double*, View<double, 2>);

}  // namespace cpu
}  // namespace fastrcnn_engine
