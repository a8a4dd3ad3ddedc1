// Errors that cross from the kernels to the caller. bindings/ turns InvalidArgument into ValueError.
#pragma once

#include <stdexcept>
#include <string>

namespace deeplab_crf {

// Input that the caller can mend. The message names the argument, what was expected, what came, and the cure.
class InvalidArgument : public std::runtime_error {
 public:
  explicit InvalidArgument(const std::string& message) : std::runtime_error(message) {}
};

// The caller asked to stop (a signal handler raised); nothing is left half-written outside the output buffers.
class Interrupted : public std::runtime_error {
 public:
  Interrupted() : std::runtime_error("interrupted") {}
};

}  // namespace deeplab_crf
