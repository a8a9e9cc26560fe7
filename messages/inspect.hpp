#pragma once

/// Makes every protobuf message of caisson.v1 a CAF message: one inspect template, found by argument-dependent lookup.

#include <caf/all.hpp>
#include <google/protobuf/message.h>
#include <google/protobuf/util/message_differencer.h>

#include <concepts>
#include <string>

namespace caisson::v1 {

template <class Inspector, std::derived_from<google::protobuf::Message> T>
typename Inspector::result_type inspect(Inspector& f, T& x) {
  std::string bytes;
  if constexpr (std::is_same_v<Inspector, caf::detail::stringification_inspector>) {
    bytes = x.ShortDebugString();
    return f(caf::meta::type_name(x.GetTypeName().c_str()), bytes);
  } else if constexpr (Inspector::reads_state) {
    x.SerializePartialToString(&bytes);
    return f(bytes);
  } else {
    auto parse = [&]() -> caf::error {
      return x.ParsePartialFromString(bytes) ? caf::error{} : caf::error{caf::sec::unknown_type};
    };
    return f(bytes, caf::meta::load_callback(parse));
  }
}

template <std::derived_from<google::protobuf::Message> T> bool operator==(const T& a, const T& b) {
  return google::protobuf::util::MessageDifferencer::Equals(a, b);
}

} // namespace caisson::v1
