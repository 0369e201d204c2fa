// Two kinds of error: the caller's, and the device's.
#pragma once

#include <iomanip>
#include <limits>
#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

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

// One part of a message. A number has as many digits as it takes to tell it from others of its type: cut short,
// what is just above a limit would read as the limit. (std::to_chars counts them too, but not before macOS 13.3.)
template <typename Part>
void write_part(std::ostream& message, const Part& part) {
  if constexpr (std::is_floating_point_v<Part>) {
    using Digits = std::numeric_limits<Part>;
    std::stringstream text;
    text.imbue(std::locale::classic());  // a point, whatever the program's language
    for (int digits = Digits::digits10; digits <= Digits::max_digits10; ++digits) {
      text.str("");
      text.clear();
      text << std::setprecision(digits) << part;
      if (Part read; text >> read && read == part) break;
    }
    message << text.str();
  } else {
    message << part;
  }
}

// Throws InvalidArgument with the message made of `parts`.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message.imbue(std::locale::classic());
  (write_part(message, parts), ...);
  throw InvalidArgument(message.str());
}

// The same unless `condition` holds. The parts are made either way: where that costs, ask first.
template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

}  // namespace fastrcnn_engine
