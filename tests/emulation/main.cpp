// Usage: test_kernels <name> [stop]; without a name it lists the tests. "stop": at the first failure.
#include <cstdlib>
#include <iostream>

#include "kernel_tests.h"

namespace {

int checks = 0, failures = 0;
bool stop = false;

struct Test {
  const char* name;
  void (*run)();
};
constexpr Test kTests[] = {
    {"roi_pool_forward", roi_pool_forward},
    {"roi_pool_forward_of_16_bits", roi_pool_forward_of_16_bits},
    {"roi_pool_backward", roi_pool_backward},
    {"smooth_l1", smooth_l1},
    {"box_codec", box_codec},
    {"box_iou", box_iou},
    {"nms", nms},
    {"nms_of_long_lists", nms_of_long_lists},
    {"nms_at_threshold", nms_at_threshold},
    {"detections", detections},
    {"device_errors", device_errors},
    {"the_emulator_notices", the_emulator_notices},
};

}  // namespace

void expect(bool condition, const std::string& what) {
  ++checks;
  if (condition) return;
  if (++failures <= 20) std::cerr << "FAILED: " << what << "\n";
  if (stop) std::_Exit(1);
}

int main(int argc, char** argv) {
  stop = argc > 2 && std::string(argv[2]) == "stop";
  for (const Test& test : kTests) {
    if (argc < 2) {
      std::cout << test.name << "\n";
    } else if (std::string(argv[1]) == test.name) {
      test.run();
      std::cout << checks << " checks, " << failures << " failed\n";
      return checks == 0 || failures > 0;
    }
  }
  return argc < 2 ? 0 : 2;
}
