// Two kinds of error: the caller's, and the device's.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace fastrcnn_engine {

// The caller's fault. The message names the argument, and where it applies the row, what was
// expected and what was got. Python sees a ValueError, so arguments have their names of there: input for
// features, boxes for rois and, but for encode_boxes, for proposals, reference_boxes for the targets of
// encode_boxes, output for a result.
class InvalidArgument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// The device's or the driver's fault. Python sees a RuntimeError.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws InvalidArgument with the message made of `parts`.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw InvalidArgument(message.str());
}

// The same unless `condition` holds. The parts are made either way: where that costs, ask first.
template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

}  // namespace fastrcnn_engine
