// Failing calls of the runtime, and what the emulator itself must notice.
#include <cstring>
#include <memory>
#include <new>

#include "fastrcnn_engine/build_info.h"
#include "fastrcnn_engine/detections.h"
#include "fastrcnn_engine/error.h"
#include "fastrcnn_engine/nms.h"
#include "fastrcnn_engine/roi_pool.h"
#include "fastrcnn_engine/semantics/half.h"
#include "fastrcnn_engine/smooth_l1.h"
#include "kernel_tests.h"

namespace {

// Each call of the runtime fails once. The launcher throws, and leaves no memory, no changed device
// and no error behind (finish says so). Calls of destructors may fail unheard. Returns how often it
// threw.
template <typename Launcher>
int failing_calls(const Launcher& launcher) {
  int thrown = 0;
  for (int nth = 1;; ++nth) {
    emulation::fail_call(nth);
    try {
      launcher();
    } catch (const DeviceError& error) {
      ++thrown;
      expect(std::string(error.what()).find("emulated failure") != std::string::npos,
             "the reason is given");
    }
    const bool happened = emulation::fail_call(0);
    emulation::finish();
    if (!happened) return thrown;
  }
}

void diverging_kernel() {
  if (threadIdx.x < 100) __syncthreads();
}

void two_barriers_kernel() {
  if (threadIdx.x < 100)
    __syncthreads();
  else
    __syncthreads();
}

// Forgets the barrier of a fold.
void racing_kernel(int* sum) {
  static int lanes[64];
  const int lane = static_cast<int>(threadIdx.x);
  lanes[lane] = lane;
  __syncthreads();
  for (int half = 32; half > 0; half /= 2)
    if (lane < half) lanes[lane] += lanes[lane + half];
  if (lane == 0) *sum = lanes[0];
}

void lost_lanes_kernel() {
  if (threadIdx.x != 5) __syncwarp();
}

void two_meetings_kernel() {
  if (threadIdx.x < 5)
    __syncwarp();
  else
    __ballot_sync(~0u, 1);
}

void some_lanes_kernel() { __syncwarp(0xff); }

cudaLaunchConfig_t block_of(unsigned threads, size_t shared_bytes = 0) {
  cudaLaunchConfig_t config;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = emulation::stream();
  return config;
}

// The work ends in an emulation::Error that says so.
template <typename Work>
void expect_report(const std::string& what, const Work& work) {
  std::string report;
  cudaSetDevice(emulation::kDevice);
  try {
    work();
    cudaSetDevice(0);
    emulation::finish();
  } catch (const emulation::Error& error) {
    report = error.what();
  }
  cudaSetDevice(0);
  emulation::finish();
  expect(report.find(what) != std::string::npos, what + ", got: " + report);
}

// Memory of the caller's, `left` more pieces of it. Each ends where a sanitizer looks.
struct Pool : DeviceMemory {
  void* allocate(int64_t bytes) override {
    if (left-- == 0) throw std::bad_alloc();
    pieces.emplace_back(static_cast<char*>(::operator new(bytes, std::align_val_t{256})));
    std::memset(pieces.back().get(), 0xFF, bytes);
    return pieces.back().get();
  }
  struct Delete {
    void operator()(char* piece) const { ::operator delete(piece, std::align_val_t{256}); }
  };
  std::vector<std::unique_ptr<char, Delete>> pieces;
  int64_t left = -1;
};

}  // namespace

void device_errors() {
  Random random;
  const auto boxes = crowded_boxes<float>(20, random);
  const auto scores = tied_scores<float>(40, random);
  std::vector<float> iou(400), out_boxes(40), out_scores(10);
  std::vector<int64_t> labels(10), rows(10);
  const BoxIou<float> pairs{rows_of(boxes, 4), rows_of(boxes, 4), false, {iou.data(), {20, 20}}};
  // cudaGetDevice, cudaSetDevice, one launch.
  expect(failing_calls([&] { cuda::box_iou(pairs, stream()); }) == 3,
         "box_iou reports every failure");

  DetectBoxes<float> call;
  call.proposals = rows_of(boxes, 4);
  call.scores = rows_of(scores, 2);
  call.image_height = call.image_width = 9;
  call.nms_threshold = 0.3f;
  call.boxes = rows_of(out_boxes, 4);
  call.box_scores = list_of(out_scores);
  call.labels = list_of(labels);
  call.proposal_rows = list_of(rows);
  // The two of the device, its shared memory and its multiprocessors, a buffer, a memset, 5 launches, the
  // copy and the wait.
  expect(failing_calls([&] { cuda::detect_boxes(call, stream()); }) == 13,
         "detect_boxes reports every failure");
  const std::vector<int64_t> ids(20, 3);
  std::vector<int64_t> keep(20);
  Nms<float> suppression;
  suppression.boxes = rows_of(boxes, 4);
  suppression.scores = {scores.data(), {20}};
  suppression.class_ids = ids.data();
  suppression.keep = list_of(keep);
  // As detect_boxes, and for the classes a buffer, a memset and a launch.
  expect(failing_calls([&] { cuda::nms(suppression, stream()); }) == 16, "nms reports every failure");
  // And for a second window two launches more.
  const auto many_boxes = crowded_boxes<float>(1100, random, 80);
  const auto many_scores = tied_scores<float>(1100, random);
  const std::vector<int64_t> same_ids(1100, 3);
  std::vector<int64_t> many_kept(1100);
  Nms<float> long_list = suppression;
  long_list.boxes = rows_of(many_boxes, 4);
  long_list.scores = {many_scores.data(), {1100}};
  long_list.class_ids = same_ids.data();
  long_list.keep = list_of(many_kept);
  expect(failing_calls([&] { cuda::nms(long_list, stream()); }) == 18,
         "nms of long lists reports every failure");
  // Both buffers, and no call of the runtime for them.
  Pool pool_of_caller;
  const Stream with_pool(emulation::stream(), emulation::kDevice, &pool_of_caller);
  expect(failing_calls([&] { cuda::nms(suppression, with_pool); }) == 14, "nms uses the caller's memory");
  for (int allowed = 0; allowed < 2; ++allowed) {
    pool_of_caller.left = allowed;
    bool refused = false;
    try {
      cuda::nms(suppression, with_pool);
    } catch (const std::bad_alloc&) {
      refused = true;
    }
    emulation::finish();
    expect(refused, "the caller's exception arrives");
  }
  // Buffers, memsets, launches, a copy and a wait.
  emulation::is_stream_legacy = true;
  const Stream legacy = Stream::legacy_default(emulation::kDevice);
  const std::vector<int64_t> kept = keep;
  keep.assign(keep.size(), -1);
  cuda::nms(suppression, legacy);
  cuda::smooth_l1_forward(SmoothL1<float>{rows_of(boxes, 4), rows_of(boxes, 4)}, iou.data(), legacy);
  emulation::is_stream_legacy = false;
  emulation::finish();
  expect(keep == kept, "the legacy default stream");
  std::vector<float16> map(4 * 9), pooled(40 * 4 * 4);
  std::vector<float> rois(40 * 5);
  std::vector<int32_t> argmax(pooled.size());
  RoiPoolForward<float16> pool;
  pool.features = {map.data(), 1, 4, 3, 3};
  pool.rois = rows_of(std::as_const(rois), 5);
  pool.output = {pooled.data(), 40, 4, 2, 2};
  pool.argmax = {argmax.data(), 40, 4, 2, 2};
  // The two of the device, its shared memory, its multiprocessors, one launch.
  expect(failing_calls([&] { cuda::roi_pool_forward(pool, stream()); }) == 5,
         "roi_pool_forward reports every failure");
  const RoiPoolBackward<float16> back{{pooled.data(), 40, 4, 2, 2},
                                      {argmax.data(), 40, 4, 2, 2},
                                      pool.rois,
                                      {map.data(), 1, 4, 3, 3}};
  // The two of the device, its shared memory, one launch.
  expect(failing_calls([&] { cuda::roi_pool_backward(back, stream()); }) == 4,
         "roi_pool_backward reports every failure");
  with_shared_bytes(0, [&] {  // and one buffer
    expect(failing_calls([&] { cuda::roi_pool_backward(back, stream()); }) == 5,
           "roi_pool_backward without shared memory reports every failure");
  });
  expect(cuda::why_unavailable().empty(), "a device can be used");
  emulation::fail_call(1);
  expect(cuda::why_unavailable() == "emulated failure", "the reason is given");
  emulation::finish();

  const auto refused = [](const auto& launcher) {
    bool rejected = false;
    try {
      launcher();
    } catch (const InvalidArgument&) {
      rejected = true;
    }
    emulation::finish();
    return rejected;
  };
  DetectBoxes<float> bad = call;
  bad.scores.shape[0] = 3;
  expect(refused([&] { cuda::detect_boxes(bad, stream()); }),
         "shapes are checked before the device is touched");
  bad = call;
  bad.proposals.data = nullptr;
  expect(refused([&] { cuda::detect_boxes(bad, stream()); }), "so is memory");
  int64_t* const no_count = nullptr;
  expect(refused([&] { cuda::detect_boxes(call, no_count, stream()); }) &&
             refused([&] { cuda::nms(suppression, no_count, stream()); }),
         "and memory of a count");
  const SmoothL1<float> loss{rows_of(boxes, 4), rows_of(boxes, 4)};
  float* const no_number = nullptr;
  expect(refused([&] { cuda::smooth_l1_forward(loss, no_number, stream()); }) &&
             refused([&] { cuda::smooth_l1_backward(loss, no_number, rows_of(out_boxes, 4), stream()); }),
         "and of a loss");
  bad = call;
  bad.proposals.shape[0] = bad.scores.shape[0] = int64_t{1} << 29;
  bad.scores.shape[1] = 5;
  expect(refused([&] { cuda::detect_boxes(bad, stream()); }), "so are proposals times classes");
  suppression.boxes.shape[0] = suppression.scores.shape[0] = int64_t{1} << 31;
  expect(refused([&] { cuda::nms(suppression, stream()); }), "and boxes: kernels count by int");
}

void the_emulator_notices() {
  const auto config = block_of(128), too_large = block_of(2048);
  expect_report("100 threads wait, 28 have left the kernel",
                [&] { cudaLaunchKernelEx(&config, diverging_kernel); });
  expect_report("threads of one block wait at the __syncthreads of lines",
                [&] { cudaLaunchKernelEx(&config, two_barriers_kernel); });
  expect_report("bad launch", [&] { cudaLaunchKernelEx(&too_large, diverging_kernel); });
  const auto warp = block_of(32), shared = block_of(32, 64 * 1024);
  expect_report("31 lanes of a warp wait in line",
                [&] { cudaLaunchKernelEx(&warp, lost_lanes_kernel); });
  expect_report("lanes of one warp wait in lines",
                [&] { cudaLaunchKernelEx(&warp, two_meetings_kernel); });
  expect_report("some lanes of a warp", [&] { cudaLaunchKernelEx(&warp, some_lanes_kernel); });
  expect_report("than was set", [&] { cudaLaunchKernelEx(&shared, lost_lanes_kernel); });
  expect_report("than a block can have", [] {
    cudaFuncSetAttribute(lost_lanes_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 1 << 20);
  });
  expect_report("never freed", [] {
    void* lost;
    cudaMallocAsync(&lost, 8, emulation::stream());
  });
  expect_report("not current", [] {
    cudaSetDevice(0);
    cudaStreamSynchronize(emulation::stream());
  });
  expect_report("not restored", [] {
    cudaSetDevice(0);
    emulation::finish();
    cudaSetDevice(emulation::kDevice);
    emulation::finish();
  });
  expect_report("another stream", [] { cudaStreamSynchronize(nullptr); });

  int wrong = 0;
  const auto fold = block_of(64);
  in_every_schedule([&](const std::string&) {
    int sum = -1;
    cudaSetDevice(emulation::kDevice);
    cudaLaunchKernelEx(&fold, racing_kernel, &sum);
    expect(sum == -1, "nothing runs before the stream is waited for");
    cudaStreamSynchronize(emulation::stream());
    cudaSetDevice(0);
    wrong += sum != 63 * 64 / 2;
  });
  expect(wrong > 0, "a missing barrier shows in some schedule");
}
