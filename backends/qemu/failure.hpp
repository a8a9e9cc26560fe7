#pragma once

/// How the code of this folder fails: one exception with a row of messages/error.hpp, which ends at the driver's border.

#include <stdexcept>
#include <string>

namespace caisson::qemu {

class failure : public std::runtime_error {
public:
  failure(std::string code, const std::string& text) : std::runtime_error(text), code_(std::move(code)) {}
  /// Name of a row of messages/error.hpp.
  const std::string& code() const noexcept { return code_; }

private:
  std::string code_;
};

} // namespace caisson::qemu
