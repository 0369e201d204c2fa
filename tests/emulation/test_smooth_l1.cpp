// Smooth L1: rows around the number of lanes, bad labels, no rows.
#include "fastrcnn_engine/smooth_l1.h"
#include "kernel_tests.h"

namespace {

template <typename T>
void smooth_l1_of() {
  Random random;
  constexpr int64_t width = 4;
  for (const int64_t rows : {0, 1, 256, 257, 700})
    for (const int64_t classes : {0, 1, 3})  // 0: no labels
      for (const bool weighted : {false, true})
        for (const double beta : {1.0, 0.0, 1.0 / 9}) {
          auto deltas = random.many<T>(rows * width * std::max<int64_t>(classes, 1), -2, 2);
          auto targets = random.many<T>(rows * width, -2, 2);
          for (T& target : targets) target += random.integer(0, 2) / T(3);
          // Of both signs: where sums nearly cancel, the order and the type of each addition show.
          auto weights = random.many<T>(rows * width, -1, 1);
          // One more than rows: labels of no rows are still labels, not a null pointer.
          std::vector<int64_t> labels(rows + 1), labels_for_cpu(rows + 1);
          for (int64_t r = 0; r < rows; ++r) {
            labels[r] = labels_for_cpu[r] = random.integer(0, std::max<int64_t>(classes, 1) - 1);
            // A bad label counts nothing, which the CPU calls background.
            constexpr int64_t bad[] = {-1, 3, std::numeric_limits<int64_t>::max(),
                                       std::numeric_limits<int64_t>::min()};
            if (random.integer(0, 9) == 0) {
              labels[r] = bad[random.integer(0, 3)];
              labels_for_cpu[r] = 0;
            }
            if (labels_for_cpu[r] == 0 && classes > 0) targets[r * width] = kNan;
          }
          SmoothL1<T> call;
          call.deltas = {deltas.data(), {rows, width * std::max<int64_t>(classes, 1)}};
          call.targets = {targets.data(), {rows, width}};
          call.labels = classes > 0 ? labels.data() : nullptr;
          call.weights = weighted ? weights.data() : nullptr;
          call.beta = beta;
          call.normalizer = rows == 0 ? 1 : static_cast<double>(rows);
          SmoothL1<T> on_cpu = call;
          if (classes > 0) on_cpu.labels = labels_for_cpu.data();

          std::vector<T> loss(1), expected_loss(1), grads(deltas.size()), expected_grads(grads);
          const std::vector<T> grad_loss{T(0.7)};
          cpu::smooth_l1_forward(on_cpu, expected_loss.data());
          cpu::smooth_l1_backward(on_cpu, grad_loss.data(),
                                  {expected_grads.data(), {rows, call.deltas.shape[1]}});
          in_every_schedule([&](const std::string& where) {
            loss[0] = T(77);
            grads.assign(grads.size(), T(77));
            cuda::smooth_l1_forward(call, loss.data(), stream());
            cuda::smooth_l1_backward(call, grad_loss.data(),
                                     {grads.data(), {rows, call.deltas.shape[1]}}, stream());
            emulation::finish();
            expect(same(loss, expected_loss), "smooth_l1 loss" + where);
            expect(same(grads, expected_grads), "smooth_l1 gradient" + where);
          });
        }
}

}  // namespace

void smooth_l1() {
  smooth_l1_of<float>();
  smooth_l1_of<double>();
}
